"""An offer that does not fit goes back before it is acknowledged, and says how much was there."""

import pytest

from coordinator.ledger import queries
from protocol.assignments import AssignmentState
from protocol.messages import LeaseRequest
from worker.client import CoordinatorClient, new_request_id
from worker.device import Device
from worker.folder import WorkerFolder
from worker.membership import Membership
from worker.pilots import fits_here
from worker.settings import JoinSettings
from worker.status import Board


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, event, *, durable_step) -> None:
        del event, durable_step


@pytest.mark.timeout(300)
async def test_what_does_not_fit_goes_back_at_once_with_its_peak(
    api, make, tmp_path, monkeypatch
) -> None:
    def client(url, identity) -> CoordinatorClient:
        made = CoordinatorClient(url, identity)
        made.http = api.http
        return made

    monkeypatch.setattr("worker.membership.CoordinatorClient", client)
    # Room for what the libraries take by the way, and none for the weights.
    shape = make.spec().shape.model_copy(update={"hidden_size": 512, "ffn_width": 8192})
    spec = make.spec().model_copy(update={"shape": shape})
    with api.ledger.begin() as connection:
        assignment = queries.add_assignment(
            connection,
            spec,
            shard=make.shard(spec.domain, "train").blob,
            schemes=("MHo-IHo",),
            now=api.clock(),
        )
    folder = WorkerFolder(tmp_path / "anna")
    settings = JoinSettings(
        url="http://127.0.0.1:9", folder=folder.root, http_only=True, memory_bytes=500_000_000
    )
    said = Said()
    member = Membership(settings, folder, said)
    try:
        await member.find_coordinator()
        await member.register(make.capability(free_memory_bytes=1_500_000_000))
        device = Device(
            settings=settings,
            folder=folder,
            board=Board.around(said),
            capability=member.capability,
        )
        request = LeaseRequest(request_id=new_request_id(), capability=member.capability)
        answer = await member.client.lease(request)
        assert answer.offer is not None, answer.reason
        roomy = answer.offer.model_copy(update={"expires_in": 400.0})
        assert not await fits_here(member, device, roomy)
        assert any("does not fit into memory" in line for line in said.lines)
        with api.ledger.read() as connection:
            assert queries.get_assignment(connection, assignment).state is AssignmentState.OPEN
            (failed,) = queries.out_of_memory(connection)
        assert failed.peak_memory_bytes is not None
        assert failed.peak_memory_bytes > 50_000_000
        short = answer.offer.model_copy(update={"expires_in": 1.0})
        assert await fits_here(member, device, short), "there is no time to try it"
    finally:
        folder.close()
