"""Providers and daemons that are killed or stopped in the middle of a fetch."""

import asyncio
import os
import random
import signal

import pytest
import pytest_asyncio

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.exchange import rates, streams
from shared.exchange.exchange import Exchange, FetchFailed
from tests.integration.exchange.ground import LIST_BYTES, Ground, Provider, fetched, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = random.Random(11).randbytes(6 * PIECE_BYTES + 5)
HALF = len(DATA) // 2
SLOW = 12_000_000.0
PATIENCE = 1.5

Pair = tuple[Provider, Provider, BlobRef]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def providers(ground: Ground) -> list[Provider]:
    return list(
        await asyncio.gather(
            ground.provider(rate=SLOW, bootstrap=ground.asker.maddrs),
            ground.provider(bootstrap=ground.asker.maddrs),
        )
    )


@pytest_asyncio.fixture(loop_scope="module")
async def pair(providers: list[Provider]) -> Pair:
    """A slow provider and a fast one of the same blob, whatever the test before did to them."""
    slow, fast = providers
    await asyncio.gather(slow.revive(), fast.revive())
    fast.store.add_bytes(DATA)
    return slow, fast, slow.store.add_bytes(DATA)


@pytest.mark.parametrize("victim", ["process", "daemon"])
async def test_a_provider_killed_mid_stream_is_made_up_for_by_another_from_the_same_byte_on(
    ground: Ground, pair: Pair, victim: str
) -> None:
    slow, fast, ref = pair
    mine = ground.store()
    tiers = [ground.tier(slow), ground.tier(fast, route="retained")]
    with ground.counted() as received:
        fetching = asyncio.create_task(Exchange(mine).fetch(ref, tiers))
        await until(lambda: received() > HALF)
        os.kill(slow.pid if victim == "process" else slow.daemon_pid, signal.SIGKILL)
        route = await asyncio.wait_for(fetching, 10)
    assert mine.read(ref, max_bytes=ref.size) == DATA
    assert received() <= ref.size + LIST_BYTES
    assert f"peer {slow.peer_id}:" in route
    assert f"retained {fast.peer_id}:" in route


@pytest.mark.parametrize("victim", ["process", "daemon"])
async def test_a_stopped_provider_is_left_for_another_in_bounded_time(
    ground: Ground, pair: Pair, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "STALL_SECONDS", PATIENCE)
    slow, fast, ref = pair
    mine, loop = ground.store(), asyncio.get_running_loop()
    tiers = [ground.tier(slow), ground.tier(fast, route="retained")]
    with ground.counted() as received:
        fetching = asyncio.create_task(Exchange(mine).fetch(ref, tiers))
        await until(lambda: received() > HALF)
        os.kill(slow.pid if victim == "process" else slow.daemon_pid, signal.SIGSTOP)
        stopped_at = loop.time()
        await asyncio.wait_for(fetching, 20)
    assert mine.verify(ref.digest)
    assert loop.time() - stopped_at < 2 * PATIENCE + 2
    assert received() <= ref.size + LIST_BYTES


async def test_a_provider_that_stops_beside_another_is_made_up_for_before_it_counts_as_stalled(
    ground: Ground, pair: Pair
) -> None:
    slow, fast, ref = pair
    mine, loop = ground.store(), asyncio.get_running_loop()
    with ground.counted() as received:
        fetching = asyncio.create_task(Exchange(mine).fetch(ref, [ground.tier(slow)]))
        await until(lambda: received() > HALF / 3)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        slow.signal(signal.SIGSTOP)
        started = loop.time()
        await asyncio.wait_for(Exchange(mine).fetch(ref, [ground.tier(slow, fast)]), 20)
    assert mine.verify(ref.digest)
    assert loop.time() - started < rates.STALL_SECONDS / 2


async def test_a_slow_provider_beside_a_fast_one_costs_no_time(ground: Ground, pair: Pair) -> None:
    _, fast, ref = pair
    crawling = await ground.provider(rate=100_000.0)
    crawling.store.add_bytes(DATA)
    mine = ground.store()
    with ground.counted() as received:
        await asyncio.wait_for(Exchange(mine).fetch(ref, [ground.tier(crawling, fast)]), 10)
    assert mine.verify(ref.digest)
    # Its lanes had begun a piece each, which was fetched from the other, too.
    assert received() <= ref.size + 2 * PIECE_BYTES + LIST_BYTES
    ground.end(crawling)


async def test_a_provider_that_was_stopped_before_costs_no_more_than_waiting_for_its_answer(
    ground: Ground, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FIRST_BYTE_SECONDS", PATIENCE)
    slow, fast, ref = pair
    slow.signal(signal.SIGSTOP)
    mine, started = ground.store(), asyncio.get_running_loop().time()
    await asyncio.wait_for(Exchange(mine).fetch(ref, [ground.tier(slow, fast)]), 20)
    assert mine.verify(ref.digest)
    assert asyncio.get_running_loop().time() - started < 2 * PATIENCE + 2


async def test_a_transfer_goes_on_where_it_was_when_the_provider_s_daemon_is_back(
    ground: Ground, pair: Pair
) -> None:
    slow, _, ref = pair
    mine = ground.store()
    with ground.counted() as received:
        fetching = asyncio.create_task(fetched(Exchange(mine), ref, [ground.tier(slow)]))
        await until(lambda: received() > HALF)
        os.kill(slow.daemon_pid, signal.SIGKILL)
        await asyncio.wait_for(fetching, 30)
    assert mine.verify(ref.digest)
    assert received() <= ref.size + LIST_BYTES


async def test_a_transfer_goes_on_where_it_was_when_our_own_daemon_is_back(
    ground: Ground, pair: Pair
) -> None:
    slow, _, ref = pair
    mine, restarts = ground.store(), ground.asker.restarts
    with ground.counted() as received:
        fetching = asyncio.create_task(fetched(Exchange(mine), ref, [ground.tier(slow)]))
        await until(lambda: received() > HALF)
        assert ground.asker.daemon_pid is not None
        os.kill(ground.asker.daemon_pid, signal.SIGKILL)
        await asyncio.wait_for(fetching, 30)
    assert ground.asker.restarts == restarts + 1
    assert mine.verify(ref.digest)
    assert received() <= ref.size + LIST_BYTES


async def test_an_asker_that_was_killed_keeps_the_pieces_that_were_verified(
    ground: Ground, pair: Pair
) -> None:
    """As a new process does it: another store object and another exchange over the same folder."""
    slow, _, ref = pair
    mine = ground.store()
    with ground.counted() as received:
        fetching = asyncio.create_task(Exchange(mine).fetch(ref, [ground.tier(slow)]))
        await until(lambda: received() > HALF)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        arriving = mine.arriving(ref.digest)
        assert arriving is not None
        missing = arriving.missing()
        assert 0 < len(missing) < 7
    again = ground.reopened(mine)
    with ground.counted() as received:
        await Exchange(again).fetch(ref, [ground.tier(slow)])
    assert again.verify(ref.digest)
    assert received() == sum(arriving.piece_bytes(index) for index in missing)


async def test_a_record_that_points_to_nobody_costs_no_transfer(
    ground: Ground, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.swarm.daemon.OPEN_SECONDS", 3.0)
    gone, here, ref = pair
    for one in (gone, here):
        await one.tell("announce", ref)
    gone.kill()
    found = {name for name, _ in await ground.asker.providers(ref.digest)}
    assert found == {gone.peer_id, here.peer_id}
    mine = ground.store()
    assert await Exchange(mine).fetch(ref, [ground.found(ref)]) == f"peer {here.peer_id}"
    assert mine.verify(ref.digest)
    here.kill()
    with pytest.raises(FetchFailed, match=gone.peer_id):
        await Exchange(ground.store()).fetch(ref, [ground.found(ref)])
