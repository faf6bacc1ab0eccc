"""How a lease, or a worker's time, ends before its work is done, and what the volunteer is told."""

import asyncio
from typing import Any

import pytest

from coordinator.ledger import queries
from tests.integration.ledger_side.side import (
    FAST,
    accept,
    add_work,
    cancel,
    device_of,
    lease_of,
    start,
    submission,
    until,
)
from worker.errors import Refused
from worker.lease import LeaseGone
from worker.manners.watch import Manners
from worker.work import Work


async def test_who_was_overtaken_by_a_backup_learns_why(api: Any, make: Any, workers: Any) -> None:
    add_work(api, make)
    anna, bert = workers("anna"), workers("bert")
    slow, fast = await anna.join(make.capability()), await bert.join(make.capability())
    offer = await start(slow, make)
    terms = {"worker": bert.peer_id, "free_memory_bytes": 1, "reason": "as a backup"}
    with api.ledger.begin() as connection:
        original = queries.get_assignment(connection, offer.assignment)
        twin = queries.add_backup(connection, original, now=api.clock())
        offered = queries.offer_assignment(
            connection,
            queries.OfferTerms(assignment=twin, **terms),
            now=api.clock(),
            heartbeat_seconds=10.0,
        )
    second = offer.model_copy(update={"assignment": twin, "fencing": offered.standing.fencing})
    await fast.client.acknowledge(twin, second.fencing)
    await fast.client.submit(twin, submission(make, second))
    accept(api, make, second, bert.peer_id)
    lease = lease_of(slow, offer)
    await asyncio.wait_for(lease.beats(), 10)
    with pytest.raises(LeaseGone, match=f"cancelled: {twin} of the same spec was accepted") as gone:
        lease.check()
    assert not gone.value.stalled
    assert await lease.release("stopped", "") == "gone"
    with pytest.raises(LeaseGone, match="accepted first"):
        await lease.submit(submission(make, offer, "late"), asyncio.Event())


@FAST
async def test_a_banned_worker_ends_with_words_and_4_at_work_and_idle(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    lease = lease_of(member, await start(member, make))
    idle = workers("idle")
    running = asyncio.create_task(idle.agent().run())
    await until("joined", lambda: "waiting: " in idle.said)
    with api.ledger.begin() as connection:
        for worker in (anna.peer_id, idle.peer_id):
            queries.mark_worker(connection, worker, "ban", reason="", now=api.clock())
            queries.expire_leases_of(connection, worker, now=api.clock())
    await asyncio.wait_for(lease.beats(), 10)
    with pytest.raises(Refused, match="banned by the operator") as refused:
        lease.check()
    assert refused.value.exit_code == 4
    with pytest.raises(Refused, match="banned by the operator"):
        await lease.release("stopped", "")
    with pytest.raises(Refused, match="banned by the operator"):
        await asyncio.wait_for(running, 10)
    with pytest.raises(Refused, match="banned"):
        await anna.join(make.capability())


@FAST
async def test_a_stay_is_told_to_the_coordinator_and_ends_in_good_order(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    running = asyncio.create_task(anna.agent(stay_seconds=3.0).run())
    await until("waiting", lambda: "waiting: " in anna.said)
    with api.ledger.read() as connection:
        known = queries.find_worker(connection, anna.peer_id)
    assert known is not None
    left = known.capability.available_seconds
    assert left is not None
    assert 0.0 <= left < 3.0
    assert await asyncio.wait_for(running, 20) == 0
    assert anna.said.lines[0].startswith("staying until ")
    assert "the time is over" in anna.said


@FAST
async def test_a_cancelled_assignment_ends_even_its_downloads_and_leaves_nothing(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    work = Work(member, device_of(member, anna.said), offer, Manners())
    work.folder.mkdir(parents=True)
    anna.line.silent = "/v1/blobs/"
    running = asyncio.create_task(work.run(asyncio.Event()))
    await until("it fetches", lambda: any("/v1/blobs/" in path for path in anna.line.paths))
    cancel(api, offer.assignment)
    assert await asyncio.wait_for(running, 10) == "lost"
    assert f"lease {offer.assignment} is gone" in anna.said
    assert "cancelled: not needed" in anna.said
    assert not work.folder.exists()


@FAST
async def test_a_ban_ends_the_work_at_once_and_deletes_nothing_in_case_it_is_lifted(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    work = Work(member, device_of(member, anna.said), offer, Manners())
    work.folder.mkdir(parents=True)
    anna.line.silent = "/v1/blobs/"
    running = asyncio.create_task(work.run(asyncio.Event()))
    await until("it fetches", lambda: any("/v1/blobs/" in path for path in anna.line.paths))
    with api.ledger.begin() as connection:
        queries.mark_worker(connection, anna.peer_id, "ban", reason="", now=api.clock())
    with pytest.raises(Refused, match="banned"):
        await asyncio.wait_for(running, 10)
    assert work.folder.exists()
