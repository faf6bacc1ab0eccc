"""Work that is handed in counts once, and is kept for as long as it may be asked for."""

import asyncio
from typing import Any

import httpx
import pytest

from coordinator.ledger import queries
from tests.integration.ledger_side.side import (
    FAST,
    add_work,
    cancel,
    kinds,
    lease_of,
    start,
    submission,
    until,
)
from worker.deliveries import Deliveries
from worker.lease import LeaseGone
from worker.shelf import Named
from worker.tasks import background


async def test_a_lost_answer_to_a_submission_changes_nothing_and_a_new_life_hands_in_again(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    lost: list[str] = []

    def lose_first(path: str, answer: httpx.Response) -> httpx.Response:
        if path.endswith("/submit") and not lost:
            lost.append(path)
            raise httpx.ReadTimeout("lost")
        return answer

    anna.line.fault = lose_first
    never = asyncio.Event()
    assert await lease_of(member, offer).submit(submission(make, offer), never)
    assert kinds(api).count("submit") == 1
    anew = lease_of(await anna.join(make.capability()), offer)
    async with background(anew.beats()):
        await until("it was told", lambda: anna.line.paths[-1].endswith("/heartbeat"))
        anew.beat_soon()
        await until("still here", lambda: anna.line.paths[-1] == "/v1/workers/heartbeat")
        assert not anew.gone.is_set(), "it may have to hand in the same expert again"
    assert await lease_of(member, offer).submit(submission(make, offer), never)
    assert kinds(api).count("submit") == 1
    with pytest.raises(LeaseGone, match="is submitted already"):
        await lease_of(member, offer).submit(submission(make, offer, "another"), never)


@FAST
async def test_what_was_handed_in_is_kept_until_it_is_held_or_unwanted(
    api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.deliveries.REPEAT_INTERVALS", 0)
    add_work(api, make, count=2)
    anna = workers("anna")
    member = await anna.join(make.capability())
    deliveries = Deliveries(member)
    handed_in = []
    for number in range(2):
        offer = await start(member, make)
        ref = anna.folder.blobs.add_bytes(bytes([number]))
        named = Named(
            ref, make.manifest(offer.spec, anna.peer_id).model_copy(update={"files": ()}), 0.0
        )
        sent = submission(make, offer).model_copy(update={"manifest": ref})
        await member.client.submit(offer.assignment, sent)
        deliveries.add(offer.assignment, named, sent)
        handed_in.append((offer, ref))
    (held, held_ref), (unwanted, unwanted_ref) = handed_in
    await deliveries.settle()
    assert kinds(api).count("submit") == 2, "a repetition changes nothing"
    assert anna.folder.blobs.has(held_ref.digest)
    with api.ledger.begin() as connection:
        row = queries.announced_checkpoints(connection)[0]
        manifest = make.manifest(held.spec, anna.peer_id)
        queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())
    await member.beat()
    again = Deliveries(member)
    again.take_up()
    await again.settle()
    assert not anna.folder.blobs.has(held_ref.digest)
    assert anna.folder.blobs.has(unwanted_ref.digest)
    cancel(api, unwanted.assignment)
    await again.settle()
    assert not anna.folder.blobs.has(unwanted_ref.digest)
    assert f"handed in for {unwanted.assignment} is not wanted any more" in anna.said
    assert not again
    assert anna.folder.remembered_deliveries() == {}
