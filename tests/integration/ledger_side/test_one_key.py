"""Two workers with one key, and one worker that only looks like two."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from worker.errors import KeyInUse
from worker.membership import Membership
from worker.rivals import MAX_LOST_TOKENS


async def test_of_two_workers_with_one_key_one_ends_with_words_and_the_other_goes_on(
    api: Any, make: Any, workers: Any, tmp_path: Path
) -> None:
    anna = workers("anna")
    first = await anna.join(make.capability())
    (tmp_path / "copy").mkdir()
    shutil.copy(anna.folder.root / "worker.key", tmp_path / "copy" / "worker.key")
    copy = workers("copy")
    assert copy.peer_id == anna.peer_id
    second = await copy.join(make.capability())
    ended: dict[Membership, KeyInUse] = {}
    for _ in range(10):
        for member in {first, second} - ended.keys():
            try:
                await member.beat()
            except KeyInUse as error:
                ended[member] = error
    [(gone, error)] = ended.items()
    assert error.exit_code == 4
    assert str(gone.folder.root) in str(error)
    assert "delete worker.key" in str(error)
    (left,) = {first, second} - ended.keys()
    await left.beat()


async def test_many_calls_that_lose_one_token_at_once_are_no_sign_of_another_worker(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    member = await anna.join(make.capability())
    await anna.join(make.capability())
    beats = [member.beat() for _ in range(MAX_LOST_TOKENS + 1)]
    await asyncio.gather(*beats)
