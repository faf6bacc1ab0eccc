"""Providers that send less, more or other bytes than were asked for; askers that ask nothing."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.exchange import rates, streams
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.rates import CHUNK_BYTES
from shared.exchange.serving import Limits
from tests.integration.exchange.ground import LIST_BYTES, Ground, Provider, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = random.Random(12).randbytes(9 * PIECE_BYTES + 5)
OTHER = random.Random(13).randbytes(9 * PIECE_BYTES + 5)
PATIENCE = 1.0


class Pair:
    """A provider that lies about a blob, and an honest one."""

    def __init__(self, ground: Ground, liar: Provider, honest: Provider) -> None:
        self.liar, self.honest = liar, honest
        self.ref = liar.store.add_bytes(DATA)
        self.other = liar.store.add_bytes(OTHER)
        honest.store.add_bytes(DATA)
        self.in_turn = [ground.tier(liar), ground.tier(honest, route="retained")]
        self.together = [ground.tier(liar, honest)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(ground: Ground) -> AsyncIterator[Pair]:
    starting = [ground.provider(bootstrap=ground.asker.maddrs) for _ in range(2)]
    liar, honest = await asyncio.gather(*starting)
    yield Pair(ground, liar, honest)
    ground.end(liar, honest)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "STALL_SECONDS", PATIENCE)
    monkeypatch.setattr(streams, "FIRST_BYTE_SECONDS", PATIENCE)


@pytest.mark.parametrize(
    "num_bytes", [0, 1, CHUNK_BYTES, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, -1]
)
async def test_a_range_cut_anywhere_is_taken_up_at_that_byte_and_blamed_on_nobody(
    ground: Ground, pair: Pair, num_bytes: int
) -> None:
    mine = ground.store()
    exchange = Exchange(mine)
    await pair.liar.lies(cut=num_bytes)
    before = pair.honest.sent
    with ground.counted() as received:
        route = await exchange.fetch(pair.ref, pair.in_turn)
    assert mine.read(pair.ref, max_bytes=pair.ref.size) == DATA
    assert f"retained {pair.honest.peer_id}" in route
    assert received() <= pair.ref.size + LIST_BYTES
    assert pair.honest.sent - before <= pair.ref.size - max(num_bytes, 0) + LIST_BYTES
    await pair.liar.tell("lie")
    mine.delete(pair.ref.digest)
    assert await exchange.fetch(pair.ref, pair.in_turn) == f"peer {pair.liar.peer_id}"


LIES: dict[str, dict[str, Any]] = {
    "a bit of the first piece": {"flip": 0},
    "a bit of the last piece": {"flip": len(DATA) - 1},
    "a bit in the middle": {"flip": 4 * PIECE_BYTES + 77},
    "a byte more": {"offer": 1},
    "a byte less": {"offer": -1},
    "an endless length": {"offer": 2**62},
    "the bytes of another blob": {"digest": "other"},
    "another blob's piece list": {"pieces": "other"},
    "a piece list of junk without end": {"pieces": "endless"},
    "a piece list of any length": {"pieces": "huge"},
}


@pytest.mark.parametrize("lie", LIES, ids=str)
async def test_a_liar_is_dropped_and_remembered_and_the_honest_one_is_not(
    ground: Ground, pair: Pair, lie: str
) -> None:
    told = {
        name: pair.other.digest if value == "other" else value for name, value in LIES[lie].items()
    }
    if told.get("pieces"):
        told["cut"] = 0
    await pair.liar.lies(**told)
    mine = ground.store()
    exchange = Exchange(mine)
    with ground.counted() as received:
        await exchange.fetch(pair.ref, pair.in_turn)
    assert mine.read(pair.ref, max_bytes=pair.ref.size) == DATA
    # A liar's lanes are read until the first wrong piece of each.
    assert received() <= pair.ref.size + 2 * PIECE_BYTES + LIST_BYTES
    mine.delete(pair.ref.digest)
    before = pair.liar.sent
    assert await exchange.fetch(pair.ref, pair.in_turn) == f"retained {pair.honest.peer_id}"
    assert pair.liar.sent == before


@pytest.mark.parametrize("lie", [{"flip": 9 * PIECE_BYTES}, {"digest": "other"}, {"drip": True}])
async def test_a_liar_beside_an_honest_provider_spoils_nothing(
    ground: Ground, pair: Pair, lie: dict[str, Any]
) -> None:
    if "digest" in lie:
        lie = {"digest": pair.other.digest}
    await pair.liar.lies(**lie)
    mine = ground.store()
    await asyncio.wait_for(Exchange(mine).fetch(pair.ref, pair.together), 10)
    assert mine.verify(pair.ref.digest)


async def test_first_bytes_of_a_liar_that_hangs_up_are_held_against_nobody_else(
    ground: Ground, pair: Pair
) -> None:
    await pair.liar.lies(digest=pair.other.digest, cut=PIECE_BYTES - 1)
    mine = ground.store()
    exchange = Exchange(mine)
    with ground.counted() as received:
        await exchange.fetch(pair.ref, pair.in_turn)
    assert mine.verify(pair.ref.digest)
    assert received() <= pair.ref.size + 2 * PIECE_BYTES + LIST_BYTES
    mine.delete(pair.ref.digest)
    await pair.liar.lies(flip=0)
    await exchange.fetch(pair.ref, pair.in_turn)
    mine.delete(pair.ref.digest)
    assert await exchange.fetch(pair.ref, pair.in_turn) == f"retained {pair.honest.peer_id}"


async def test_a_record_that_points_to_a_liar_costs_some_pieces_and_no_blob(
    ground: Ground, pair: Pair
) -> None:
    await pair.liar.lies(digest=pair.other.digest)
    await pair.liar.tell("announce", pair.ref)
    mine = ground.store()
    with pytest.raises(FetchFailed, match=r"SHA-256 differs"):
        await Exchange(mine).fetch(pair.ref, [ground.found(pair.ref)])
    arriving = mine.arriving(pair.ref.digest)
    assert arriving is not None
    assert len(arriving.missing()) == len(arriving.pieces.pieces)
    await pair.honest.tell("announce", pair.ref)
    await Exchange(mine).fetch(pair.ref, [ground.found(pair.ref)])
    assert mine.verify(pair.ref.digest)


async def test_a_provider_that_says_nothing_or_drips_costs_its_patience_and_no_more(
    ground: Ground, pair: Pair
) -> None:
    for lie in ({"after": 0}, {"after": PIECE_BYTES + 9}, {"drip": True}):
        await pair.liar.lies(**lie)
        mine, started = ground.store(), asyncio.get_running_loop().time()
        await Exchange(mine).fetch(pair.ref, pair.in_turn)
        assert mine.verify(pair.ref.digest)
        assert asyncio.get_running_loop().time() - started < 2 * PATIENCE + 3


async def test_a_request_with_a_header_too_large_ends_its_stream_and_nothing_else(
    ground: Ground, pair: Pair
) -> None:
    opener = ground.asker.opener(pair.honest.peer_id, pair.honest.maddrs)
    body = b'{"op":"bytes","digest":"' + b"0" * 2000 + b'"}'
    for head in (b"\xff\xff" + b"x" * 70_000, len(body).to_bytes(2, "big") + body):
        reader, writer = await opener()
        with_bytes = asyncio.create_task(_pour(writer, head))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        await with_bytes
        writer.close()
    mine = ground.store()
    assert await Exchange(mine).fetch(pair.ref, [ground.tier(pair.honest)])


async def _pour(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        return


async def test_streams_that_ask_nothing_or_drip_do_not_keep_others_out(
    ground: Ground, pair: Pair
) -> None:
    stranger = await ground.stranger()
    opener = stranger.opener(pair.honest.peer_id, pair.honest.maddrs)
    held = [await opener() for _ in range(100)]

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Return once the stream was turned away."""
        await _pour(writer, (900).to_bytes(2, "big"))
        with contextlib.suppress(OSError):
            await reader.read()

    dripping = [asyncio.create_task(drip(*one)) for one in held]
    allowed = Limits().asking_per_peer
    await until(lambda: sum(not one.done() for one in dripping) <= allowed)
    mine = ground.store()
    await asyncio.wait_for(Exchange(mine).fetch(pair.ref, [ground.tier(pair.honest)]), 10)
    assert mine.verify(pair.ref.digest)
    for _, writer in held:
        writer.close()
    await asyncio.gather(*dripping)


async def test_a_reader_that_takes_every_stream_and_reads_nothing_keeps_nobody_else_out(
    ground: Ground, pair: Pair
) -> None:
    stranger = await ground.stranger()
    opener = stranger.opener(pair.honest.peer_id, pair.honest.maddrs)
    request = streams.BlobRequest(
        op="bytes", digest=pair.ref.digest, offset=0, length=pair.ref.size
    )
    body = request.model_dump_json().encode()
    held = [await opener() for _ in range(2 * Limits().sending)]
    for _, writer in held:
        await _pour(writer, len(body).to_bytes(2, "big") + body)
    mine = ground.store()
    await asyncio.wait_for(Exchange(mine).fetch(pair.ref, [ground.tier(pair.honest)]), 10)
    assert mine.verify(pair.ref.digest)
    for _, writer in held:
        writer.close()


async def test_an_unknown_blob_is_nobody_s_lie(ground: Ground, pair: Pair) -> None:
    await pair.liar.tell("lie")
    exchange = Exchange(ground.store())
    ref = BlobRef(digest="ab" * 32, size=1000)
    for _ in range(2):
        with pytest.raises(FetchFailed, match=f"{pair.liar.peer_id}: the provider does not have"):
            await exchange.fetch(ref, pair.in_turn)
