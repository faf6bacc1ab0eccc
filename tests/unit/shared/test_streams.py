"""The blob protocol over plain sockets: limits, patience, and what broken sides do."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.blobstore import BlobStore
from shared.swarm import streams
from shared.swarm.streams import BlobServer, Status, StreamRefused, WrongBytes, fetch_from

DATA = random.Random(3).randbytes(2 * PIECE_BYTES + 5)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Remote:
    """A remote peer as libp2p describes it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def peer_id(self) -> "Remote":
        return self

    def to_base58(self) -> str:
        return self.name


class Wire:
    """Opens streams over a Unix socket to whatever handler a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.handler: Handler | None = None
        self.opened = 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.opened += 1
        return await asyncio.open_unix_connection(self.path)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.handler is not None
        try:
            await self.handler(reader, writer)
        finally:
            writer.close()

    def serve(self, store: BlobStore, peer: str = "asker", allowed: bool = True) -> BlobServer:
        server = BlobServer(store, lambda _digest, _peer: allowed)
        self.handler = _as_peer(server, peer)
        return server


def _as_peer(server: BlobServer, name: str) -> Handler:
    return lambda reader, writer: server.serve(Remote(name), reader, writer)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    wire = Wire(tmp_path / "socket")
    async with await asyncio.start_unix_server(wire.accept, path=wire.path):
        yield wire


@pytest.fixture
def theirs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "theirs")


@pytest.fixture
def mine(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "mine")


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, len(DATA)])
async def test_a_blob_arrives_whole(
    wire: Wire, theirs: BlobStore, mine: BlobStore, size: int
) -> None:
    ref = theirs.add_bytes(DATA[:size])
    wire.serve(theirs)
    await fetch_from(wire.open, ref, mine)
    assert mine.read(ref, max_bytes=size) == DATA[:size]


async def test_each_gap_is_one_stream_and_nothing_is_fetched_twice(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    partial = mine.partial(ref, theirs.pieces(ref.digest))
    partial.write_piece(1, DATA[PIECE_BYTES : 2 * PIECE_BYTES])
    wire.serve(theirs)
    await fetch_from(wire.open, ref, mine)
    assert wire.opened == 2
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
    _send(writer, request)
    return writer


async def test_one_peer_and_all_peers_together_have_so_many_streams_and_no_more(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(b"public")
    server = wire.serve(theirs)
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": 6}
    held = [await _held(wire, request) for _ in range(streams.MAX_STREAMS_PER_PEER)]
    await _until(lambda: server.num_streams == len(held))
    with pytest.raises(StreamRefused, match="busy"):
        await fetch_from(wire.open, ref, mine)
    for number in range(streams.MAX_STREAMS - len(held)):
        wire.handler = _as_peer(server, f"peer {number}")
        held.append(await _held(wire, request))
        await _until(lambda: server.num_streams == len(held))
    wire.handler = _as_peer(server, "last")
    with pytest.raises(StreamRefused, match="busy"):
        await fetch_from(wire.open, ref, mine)
    for writer in held:
        writer.close()
    await _until(lambda: server.num_streams == 0)
    await fetch_from(wire.open, ref, mine)


async def test_strangers_who_ask_nothing_or_what_is_not_theirs_take_no_slot_of_a_member(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(b"for members")
    server = BlobServer(theirs, lambda _digest, peer: peer == "member")
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": 6}
    held = []
    for number in range(2 * streams.MAX_STREAMS):
        wire.handler = _as_peer(server, f"stranger {number}")
        held += [(await wire.open())[1], await _held(wire, request)]
    wire.handler = _as_peer(server, "member")
    await fetch_from(wire.open, ref, mine)
    assert mine.has(ref.digest)
    for writer in held:
        writer.close()


async def test_one_stranger_is_answered_on_so_many_streams_at_once(
    wire: Wire, theirs: BlobStore
) -> None:
    server = wire.serve(theirs)
    held = [(await wire.open())[1] for _ in range(streams.MAX_ASKING_PER_PEER)]
    reader, writer = await wire.open()
    assert (await reader.read())[:1] == bytes([Status.BUSY])
    assert server.num_streams == 0
    for one in (*held, writer):
        one.close()


async def test_a_request_that_drips_is_not_waited_for(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "REQUEST_SECONDS", 0.2)
    wire.serve(theirs)
    reader, writer = await wire.open()
    writer.write((1000).to_bytes(2, "big"))
    async with asyncio.timeout(5):
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
    monkeypatch.setattr(streams, "REQUEST_SECONDS", 0.05)
    server = wire.serve(theirs)
    reader, writer = await wire.open()
    assert await reader.read() == b""
    assert server.num_streams == 0
    writer.close()


async def test_an_asker_that_does_not_read_is_not_waited_for(
    wire: Wire, theirs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DRAIN_SECONDS", 0.05)
    ref = theirs.add_bytes(DATA)
    server = wire.serve(theirs)
    _, writer = await wire.open()
    request = {"op": "bytes", "digest": ref.digest, "offset": 0, "length": len(DATA)}
    _send(writer, request)
    await _until(lambda: server.num_streams == 1)
    await _until(lambda: server.num_streams == 0)
    writer.close()


async def _silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + (100).to_bytes(8, "big") + b"half")
    await reader.read()


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1024)
    writer.write(bytes([Status.OK]) + (100).to_bytes(8, "big") + b"half")


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + b"\xff" * 8)
    await reader.read()


async def _no_piece_list(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + (2).to_bytes(8, "big") + b"{}")
    await reader.read()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readexactly(2)
    request = json.loads(await reader.readexactly(int.from_bytes(head, "big")))
    writer.write(bytes([Status.OK]) + request["length"].to_bytes(8, "big"))
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("handler", "kind", "reason"),
    [
        (_silent, StreamRefused, "waited 0 s for bytes"),
        (_half_an_answer, StreamRefused, "waited 0 s for bytes"),
        (_cut, StreamRefused, "ended 96 bytes early"),
        (_endless, WrongBytes, "a piece list of"),
        (_no_piece_list, WrongBytes, "size"),
    ],
)
async def test_a_broken_provider_is_left_with_its_reason(
    wire: Wire,
    mine: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
    handler: Handler,
    kind: type[StreamRefused],
    reason: str,
) -> None:
    monkeypatch.setattr(streams, "FIRST_BYTE_SECONDS", 0.1)
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.1)
    wire.handler = handler
    with pytest.raises(StreamRefused, match=reason) as refused:
        await fetch_from(wire.open, BlobRef(digest="0" * 64, size=5), mine)
    assert type(refused.value) is kind


async def test_a_provider_that_drips_is_left_after_a_piece_s_time(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE_SECONDS", 0.2)
    ref = theirs.add_bytes(DATA)
    mine.partial(ref, theirs.pieces(ref.digest))
    wire.handler = _drip
    with pytest.raises(StreamRefused, match="piece 0"):
        await fetch_from(wire.open, ref, mine)


async def test_a_provider_that_drips_its_piece_list_is_left_after_a_piece_s_time(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE_SECONDS", 0.2)
    wire.handler = _drip
    with pytest.raises(StreamRefused, match="the piece list"):
        await fetch_from(wire.open, theirs.add_bytes(DATA), mine)


async def test_what_was_verified_before_a_break_is_kept(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    wire.serve(theirs)
    cut = PIECE_BYTES + 1000

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(2)
        request = json.loads(await reader.readexactly(int.from_bytes(head, "big")))
        writer.write(bytes([Status.OK]) + request["length"].to_bytes(8, "big") + DATA[:cut])
        await writer.drain()

    mine.partial(ref, theirs.pieces(ref.digest))
    served, wire.handler = wire.handler, cutting
    with pytest.raises(StreamRefused, match=f"ended {PIECE_BYTES - 1000} bytes early"):
        await fetch_from(wire.open, ref, mine)
    arriving = mine.arriving(ref.digest)
    assert arriving is not None
    assert arriving.missing() == (1, 2)
    wire.handler = served
    await fetch_from(wire.open, ref, mine)
    assert mine.read(ref, max_bytes=len(DATA)) == DATA


def _send(writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
    body = json.dumps(request).encode()
    writer.write(len(body).to_bytes(2, "big") + body)


async def _ask(wire: Wire, request: dict[str, Any]) -> bytes:
    """Everything that a request is answered with, until the asker hangs up its sending side."""
    reader, writer = await wire.open()
    _send(writer, request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
