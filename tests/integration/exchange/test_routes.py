"""One blob by every route: each takes up what the one before had brought."""

import asyncio
import os
import random
import signal
from collections.abc import Sequence

import httpx
import pytest

from protocol.digests import PIECE_BYTES
from shared.exchange.exchange import Exchange
from shared.exchange.over_http import HttpSource
from shared.exchange.sources import Source, Tier
from tests.integration.exchange.ground import LIST_BYTES, Ground, Provider, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = random.Random(17).randbytes(8 * PIECE_BYTES + 5)
SLOW = 12_000_000.0


def over_http(ground: Ground, provider: Provider, client: httpx.AsyncClient, digest: str) -> Tier:
    async def find() -> Sequence[Source]:
        url = f"{provider.url}/v1/blobs/{digest}"
        return [HttpSource(client, url, down=ground.down)]

    return Tier("http", find)


async def test_a_peer_and_then_the_retained_copy_are_cut_and_http_brings_the_rest_and_no_more(
    ground: Ground,
) -> None:
    peer, retained, network = await asyncio.gather(
        ground.provider(rate=SLOW), ground.provider(rate=SLOW), ground.provider(http=True)
    )
    for one in (peer, retained, network):
        ref = one.store.add_bytes(DATA)
    mine = ground.store()
    async with httpx.AsyncClient() as client:
        tiers = [
            ground.tier(peer),
            ground.tier(retained, route="retained"),
            over_http(ground, network, client, ref.digest),
        ]
        with ground.counted() as received:
            fetching = asyncio.create_task(Exchange(mine).fetch(ref, tiers))
            await until(lambda: received() > ref.size / 3)
            peer.signal(signal.SIGKILL)
            await until(lambda: received() > 2 * ref.size / 3)
            os.kill(retained.daemon_pid, signal.SIGKILL)
            route = await asyncio.wait_for(fetching, 10)
    assert mine.read(ref, max_bytes=ref.size) == DATA
    assert received() <= ref.size + LIST_BYTES
    brought = dict(part.rsplit(":", 1) for part in route.split(" + "))
    assert set(brought) == {f"peer {peer.peer_id}", f"retained {retained.peer_id}", "http"}
    assert sum(map(int, brought.values())) == 9
    for one in (peer, retained):
        assert one.sent < ref.size


async def test_http_that_breaks_gives_back_to_a_peer_that_came_meanwhile(ground: Ground) -> None:
    """The order is that of the tiers in every try; what is here stays whichever it is."""
    network = await ground.provider(http=True)
    ref = network.store.add_bytes(DATA)
    mine = ground.store()
    exchange = Exchange(mine)
    async with httpx.AsyncClient() as client:
        with ground.counted() as received:
            tier = over_http(ground, network, client, ref.digest)
            fetching = asyncio.create_task(exchange.fetch(ref, [tier]))
            await until(lambda: received() > ref.size / 3)
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            ground.end(network)
            peer = await ground.provider()
            peer.store.add_bytes(DATA)
            route = await exchange.fetch(ref, [ground.tier(peer), tier])
            assert route == f"peer {peer.peer_id}"
            assert received() <= ref.size + LIST_BYTES
    assert peer.sent < ref.size
    assert mine.verify(ref.digest)
