"""What a blob server answers over plain sockets: its limits and its patience."""

import asyncio
import contextlib
from typing import Any

import pytest

from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.exchange import download, rates, serving, streams
from shared.exchange.exchange import FetchFailed
from shared.exchange.serving import BlobServer, Limits
from shared.exchange.streams import REQUEST_SECONDS, Status
from tests.wire import DATA, Wire, as_peer, send, until

LIMITS = Limits()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, len(DATA)])
async def test_a_blob_arrives_whole(
    wire: Wire, theirs: BlobStore, mine: BlobStore, size: int
) -> None:
    ref = theirs.add_bytes(DATA[:size])
    wire.serve(theirs)
    await wire.fetch(ref, mine)
    assert mine.read(ref, max_bytes=size) == DATA[:size]


async def test_each_gap_is_one_stream_and_nothing_is_fetched_twice(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    partial = mine.partial(ref, theirs.pieces(ref.digest))
    partial.write_piece(1, DATA[PIECE_BYTES : 2 * PIECE_BYTES])
    wire.serve(theirs)
    await wire.fetch(ref, mine)
    assert mine.read(ref, max_bytes=len(DATA)) == DATA


async def test_a_refused_and_an_unknown_blob_get_the_same_bytes(
    wire: Wire, theirs: BlobStore
) -> None:
    ref = theirs.add_bytes(b"secret")
    answers = set()
    for digest, allowed in ((ref.digest, False), ("0" * 64, True), ("0" * 64, False)):
        wire.serve(theirs, allowed=allowed)
        answers.add(await _ask(wire, {"op": "bytes", "digest": digest, "offset": 0, "length": 6}))
    assert answers == {bytes([Status.UNKNOWN]) + bytes(8)}


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "delete"},
        {"digest": "../../etc/passwd"},
        {"offset": -1},
        {"length": 2**70},
        {"length": "5"},
        {"more": 1},
    ],
)
async def test_a_malformed_request_ends_the_stream_without_an_answer(
    wire: Wire, theirs: BlobStore, changes: dict[str, Any]
) -> None:
    ref = theirs.add_bytes(b"public")
    wire.serve(theirs)
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": 6}
    assert await _ask(wire, request | changes) == b""
    assert await _ask(wire, request) == bytes([Status.OK]) + bytes(7) + b"\6" + b"public"


async def test_a_request_that_announces_too_much_is_not_read(wire: Wire, theirs: BlobStore) -> None:
    wire.serve(theirs)
    reader, writer = await wire.open()
    writer.write(b"\xff\xff")
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(4, 100, b"ic"), (6, 1, b""), (99, 5, b""), (1, 2, b"ub")]
)
async def test_a_range_is_cut_to_what_there_is(
    wire: Wire, theirs: BlobStore, offset: int, length: int, expected: bytes
) -> None:
    ref = theirs.add_bytes(b"public")
    wire.serve(theirs)
    request = {"op": "bytes", "digest": ref.digest, "offset": offset, "length": length}
    assert (await _ask(wire, request))[9:] == expected


async def _held(wire: Wire, request: dict[str, Any]) -> asyncio.StreamWriter:
    """A stream that was asked and is never acknowledged."""
    _, writer = await wire.open()
    send(writer, request)
    return writer


async def test_one_peer_and_all_peers_together_have_so_many_streams_and_no_more(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BUSY_PAUSES", (0.01,))
    ref = theirs.add_bytes(b"public")
    server = wire.serve(theirs)
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": 6}
    held = [await _held(wire, request) for _ in range(LIMITS.sending_per_peer)]
    await until(lambda: server.num_streams == len(held))
    with pytest.raises(FetchFailed, match="busy"):
        await wire.fetch(ref, mine)
    for number in range(LIMITS.sending - len(held)):
        wire.handler = as_peer(server, f"peer {number}")
        held.append(await _held(wire, request))
        await until(lambda: server.num_streams == len(held))
    wire.handler = as_peer(server, "last")
    with pytest.raises(FetchFailed, match="busy"):
        await wire.fetch(ref, mine)
    for writer in held:
        writer.close()
    await until(lambda: server.num_streams == 0)
    await wire.fetch(ref, mine)


async def test_strangers_who_ask_nothing_or_what_is_not_theirs_take_no_slot_of_a_member(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(b"for members")
    server = BlobServer(theirs, lambda _digest, peer: peer == "member")
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": 6}
    held = []
    for number in range(2 * LIMITS.sending):
        wire.handler = as_peer(server, f"stranger {number}")
        held += [(await wire.open())[1], await _held(wire, request)]
    wire.handler = as_peer(server, "member")
    await wire.fetch(ref, mine)
    assert mine.has(ref.digest)
    for writer in held:
        writer.close()


async def test_when_all_slots_for_asking_are_taken_who_waits_for_longest_makes_way(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(b"for members")
    server = BlobServer(theirs, lambda _digest, peer: peer == "member")
    held = []
    for number in range(LIMITS.asking):
        wire.handler = as_peer(server, f"stranger {number}")
        held.append(await wire.open())
    await until(lambda: server._asking.num_taken == LIMITS.asking)
    wire.handler = as_peer(server, "member")
    async with asyncio.timeout(REQUEST_SECONDS):
        await wire.fetch(ref, mine)
        assert await held[0][0].read() == b""
    assert not held[-1][0].at_eof()
    for _, writer in held:
        writer.close()
    await until(lambda: server._asking.num_taken == 0)


async def test_one_stranger_is_answered_on_so_many_streams_at_once(
    wire: Wire, theirs: BlobStore
) -> None:
    server = wire.serve(theirs)
    held = [(await wire.open())[1] for _ in range(LIMITS.asking_per_peer)]
    reader, writer = await wire.open()
    assert (await reader.read())[:1] == bytes([Status.BUSY])
    assert server.num_streams == 0
    for one in (*held, writer):
        one.close()


async def test_a_request_that_drips_is_not_waited_for(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.2)
    wire.serve(theirs)
    reader, writer = await wire.open()
    writer.write((1000).to_bytes(2, "big"))
    async with asyncio.timeout(30):
        while not reader.at_eof():
            with contextlib.suppress(OSError):
                writer.write(b"{")
                await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
    writer.close()


async def test_a_silent_asker_is_not_waited_for(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.05)
    server = wire.serve(theirs)
    reader, writer = await wire.open()
    assert await reader.read() == b""
    assert server.num_streams == 0
    writer.close()


@pytest.mark.parametrize("op", ["bytes", "pieces"])
async def test_who_asks_for_little_and_never_says_that_it_came_is_not_waited_for_long(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(rates, "STALL_SECONDS", 0.05)
    ref = theirs.add_bytes(b"public")
    server = wire.serve(theirs)
    writer = await _held(wire, {"op": op, "digest": ref.digest, "offset": 0, "length": 6})
    await until(lambda: server.num_streams == 1)
    await until(lambda: server.num_streams == 0)
    writer.close()


async def test_an_asker_that_does_not_read_is_not_waited_for(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DRAIN_SECONDS", 0.05)
    ref = theirs.add_bytes(DATA)
    server = wire.serve(theirs)
    _, writer = await wire.open()
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": len(DATA)}
    send(writer, request)
    await until(lambda: server.num_streams == 1)
    await until(lambda: server.num_streams == 0)
    writer.close()


async def _ask(wire: Wire, request: dict[str, Any]) -> bytes:
    """Everything that a request is answered with, until the asker hangs up its sending side."""
    reader, writer = await wire.open()
    send(writer, request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer
