"""A coordinator that is busy, restarts or answers nonsense, and workers that call too often."""

import asyncio
from typing import Any

import httpx
import pytest

from coordinator.ledger import queries
from tests.integration.ledger_side.side import (
    FAST,
    add_work,
    call_too_often,
    lease_of,
    start,
    until,
)
from worker.errors import CoordinatorUnreachable
from worker.tasks import background


@FAST
async def test_a_busy_coordinator_is_named_busy_and_asked_again_until_it_has_time(
    api: Any, make: Any, workers: Any, busy: asyncio.Event
) -> None:
    busy.set()
    anna = workers("anna")
    agent = anna.agent()
    running = asyncio.create_task(agent.run())
    await until("it heard so", lambda: "the coordinator is busy, next try in" in anna.said)
    assert "joined" not in anna.said
    busy.clear()
    await until("joined", lambda: "joined run test" in anna.said)
    await until("no work", lambda: "waiting: " in anna.said)
    busy.set()
    await until("busy", lambda: "the coordinator is busy, it is asked again" in anna.said)
    before = len(anna.line.paths)
    await until(
        "it beats meanwhile",
        lambda: anna.line.paths[before:].count("/v1/workers/heartbeat") > 2,
    )
    agent.stop()
    assert await asyncio.wait_for(running, 20) == 0


@FAST
async def test_neither_a_rate_limit_nor_a_coordinator_in_trouble_ends_a_lease(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    await call_too_often(member)
    lease = lease_of(member, offer)
    answers: list[int] = []

    def note(path: str, answer: httpx.Response) -> httpx.Response:
        answers.append(answer.status_code)
        if len(answers) in (3, 4):
            return httpx.Response(502, text="<p>bad gateway</p>")
        if len(answers) == 5:
            raise httpx.ReadTimeout("silent")
        if len(answers) == 6:
            return httpx.Response(200, text="<p>welcome</p>")
        return answer

    anna.line.fault = note
    async with background(lease.beats()):
        await until("refused", lambda: answers == [429, 429])
        api.clock.advance(0.4)
        lease.note_progress({"step": 5, "loss": 1.0, "tokens_per_second": 1.0})
        await until("many troubles later", lambda: len(answers) > 7)
        assert not lease.gone.is_set()
        lease.check()
    with api.ledger.read() as connection:
        attempt = queries.live_lease_of(connection, anna.peer_id)
    assert attempt is not None
    assert attempt.step == 5


@FAST
async def test_a_worker_that_called_too_often_and_starts_again_waits_and_says_so(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    await call_too_often(await anna.join(make.capability()))
    joining = asyncio.create_task(anna.join(make.capability()))
    await until("it heard so", lambda: "the coordinator is busy, next try in" in anna.said)
    assert not joining.done()
    api.clock.advance(1.0)
    await (await asyncio.wait_for(joining, 20)).beat()


@FAST
async def test_a_fetch_waits_for_a_role_that_restarts_and_gives_up_in_the_end(
    api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    tries: list[str] = []

    def fail(path: str, answer: httpx.Response) -> httpx.Response:
        if "/v1/blobs/" not in path:
            return answer
        tries.append(path)
        return httpx.Response(503, text="<p>starting</p>")

    anna.line.fault = fail
    monkeypatch.setattr("worker.transfers.PATIENCE_SECONDS", 3.0)
    with pytest.raises(CoordinatorUnreachable, match="no route works"):
        await member.holdings.fetch_input(offer.shard, public=True, needed=())
    assert len(tries) > 1
    assert member.cached() == ()
    anna.line.fault = lambda _path, answer: answer
    before = len(anna.line.paths)
    with pytest.raises(CoordinatorUnreachable, match="none that you may read"):
        await member.holdings.fetch_input(make.blob("of somebody else"), public=True, needed=())
    assert len(anna.line.paths) == before + 1, "a typed refusal is final"
