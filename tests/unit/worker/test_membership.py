"""What a member tells of this machine with every request."""

from datetime import timedelta

from shared.clock import now
from worker.folder import WorkerFolder
from worker.manners.hours import parse_hours
from worker.manners.rules import Rules, local_time
from worker.membership import Membership
from worker.screen import TextScreen
from worker.settings import JoinSettings


async def test_hours_that_soon_end_are_told_with_what_is_offered(make, tmp_path):
    here = local_time(now())
    begin, end = (f"{here + timedelta(hours=shift):%H:%M}" for shift in (-5, 2))
    rules = Rules(hours=(parse_hours(f"{begin}-{end}"),))
    settings = JoinSettings(url="http://127.0.0.1:1", folder=tmp_path, rules=rules)
    folder = WorkerFolder(tmp_path)
    member = Membership(settings, folder, TextScreen(""))
    member.capability = make.capability()
    told = member.offered(member.capability).available_seconds
    assert told is not None
    assert 0.0 < told <= 3 * 3600.0, "two hours, or three on the night when the clock is set back"
    await member.stop()
    folder.close()
