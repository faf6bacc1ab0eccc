"""Blobs over raw libp2p streams: what is said, in which bytes, and for how long we wait.

A request is a 2-byte length and JSON `{"op", "digest", "offset", "length"}`; an answer is a status
byte and an 8-byte length.

    pieces   the answer's body is the piece list as JSON
    bytes    the body is that range of the blob
    push     offset 0, length the blob's size. The asker then sends a 4-byte length and the piece
             list; the body of a second answer is a bitmap of the pieces that are missing; they are
             sent in order, every UNIT_BYTES of each acknowledged by a byte, and KEPT follows when
             the blob is complete

Whoever reads a body acknowledges it with a byte before the other side closes: closing right after
writing loses the end. The stream's remote peer id is proven by libp2p. Refused and unknown blobs
look the same. End of stream is never success: lengths and digests are.
"""

import asyncio
import contextlib
import fcntl
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from protocol.blobs import MAX_BLOB_BYTES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.ids import Digest
from protocol.values import Value
from shared.exchange.incoming import Incoming
from shared.exchange.rates import CHUNK_BYTES, SLOWEST_FLOW, Bucket, Flow, patience_seconds
from shared.exchange.sources import Read, Route, SourceBusy, SourceFailed, WrongBytes

Result = TypeVar("Result")
Bytes = bytes | bytearray | memoryview

PROTOCOL = "hdee/blob/1"
REQUEST_SECONDS = 3.0
FIRST_BYTE_SECONDS = 15.0
DRAIN_SECONDS = 60.0
"""In every such time bytes leave at half of SLOWEST_FLOW, or there is room for more."""

ACKNOWLEDGE_SECONDS = 120.0
"""Slow lines need so long to empty what lies in buffers on the way."""

ACKNOWLEDGED = b"k"
REFUSED = b"x"
KEPT = b"d"

UNIT_BYTES = 256 * 1024
READ_BYTES = 4 * UNIT_BYTES
"""What is read from disk at a time."""

SEND_BUFFER_BYTES = 1024 * 1024
"""Of the socket to our daemon. With the system's usual 200 kB, sender and daemon wake each other
for every chunk, which costs both a third of their CPU time more. The system may grant less."""

MAX_REQUEST_BYTES = 1024


class Status(IntEnum):
    """The first byte of an answer."""

    OK = 0
    UNKNOWN = 1
    BUSY = 2


class StreamRefused(SourceFailed):
    """The other side of a stream gave no usable answer; `reason` says why."""


class StreamTooSlow(StreamRefused):
    """The other side did not do in time what was waited for."""


class BlobRequest(Value):
    """The first thing said on a stream."""

    op: Literal["pieces", "bytes", "push"]
    digest: Digest
    offset: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    length: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]


OpenStream = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a stream to one peer; raises StreamRefused if that cannot be done in time."""


class StreamSource:
    """A peer that may have the blob, reached by streams that `open_stream` opens."""

    def __init__(self, open_stream: OpenStream, *, peer: str, route: Route, down: Bucket) -> None:
        self._open_stream = open_stream
        self._down = down
        self.name = peer
        self.route = route

    async def pieces(self, ref: BlobRef) -> PieceList:
        """See `Source`."""
        bound = list_bound(ref)
        request = BlobRequest(op="pieces", digest=ref.digest, offset=0, length=bound)
        async with asked(self._open_stream, request) as (length, reader, _):
            if length > bound:
                raise WrongBytes(f"a piece list of {length} bytes, expected at most {bound}")
            body = await read_exactly(reader, length, self._down)
        return PieceList.model_validate_json(body)

    @asynccontextmanager
    async def opened(self, ref: BlobRef, offset: int, length: int) -> AsyncIterator[Read]:
        """See `Source`."""
        request = BlobRequest(op="bytes", digest=ref.digest, offset=offset, length=length)
        async with asked(self._open_stream, request) as (offered, reader, writer):
            if offered != length:
                raise WrongBytes(f"{offered} bytes offered, expected {length}")
            incoming, flow = await taken_over(reader, writer), Flow(_time())

            async def read(max_bytes: int) -> bytearray:
                chunk = bytearray(min(max_bytes, self._down.gulp_bytes))
                with memoryview(chunk) as view:
                    num_bytes = await _read_into(incoming, view, flow, self._down)
                del chunk[num_bytes:]
                return chunk

            yield read


def piece_range(ref: BlobRef, index: int) -> tuple[int, int]:
    """Where piece `index` of the blob begins and ends, in bytes."""
    return index * PIECE_BYTES, min((index + 1) * PIECE_BYTES, ref.size)


def list_bound(ref: BlobRef) -> int:
    """Bytes that the JSON of a piece list may take: 64 digits, two quotes and a comma a piece."""
    return 70 * -(-ref.size // PIECE_BYTES) + 256


@asynccontextmanager
async def asked(
    open_stream: OpenStream, request: BlobRequest
) -> AsyncIterator[tuple[int, asyncio.StreamReader, asyncio.StreamWriter]]:
    """One stream, asked and answered: the length of the body, and both ends of the stream."""
    reader, writer = await open_stream()
    try:
        body = request.model_dump_json().encode()
        await write(writer, len(body).to_bytes(2, "big") + body)
        yield await read_answer(reader), reader, writer
        await write(writer, ACKNOWLEDGED)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    """The length of the body that follows. Raises StreamRefused, SourceBusy."""
    head = await within(FIRST_BYTE_SECONDS, reader.readexactly(9), "an answer")
    if head[0] == Status.BUSY:
        raise SourceBusy("the provider is busy")
    if head[0] != Status.OK:
        raise StreamRefused("the provider does not have it for us")
    return int.from_bytes(head[1:], "big")


async def read_request(reader: asyncio.StreamReader) -> BlobRequest:
    """The request of an incoming stream. Raises StreamRefused, ValidationError."""
    length = int.from_bytes(await reader.readexactly(2), "big")
    if length > MAX_REQUEST_BYTES:
        raise StreamRefused(f"a request of {length} bytes")
    return BlobRequest.model_validate_json(await reader.readexactly(length))


async def read_exactly(reader: asyncio.StreamReader, length: int, down: Bucket) -> bytearray:
    """Exactly `length` bytes, which the caller has bounded, as long as they keep coming."""
    data, flow = bytearray(), Flow(_time())
    while len(data) < length:
        reading = reader.read(min(down.chunk_bytes, length - len(data)))
        chunk = await within(flow.seconds_left(_time()), reading, "bytes")
        await _noted(len(chunk), flow, down)
        data += chunk
    return data


async def taken_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Incoming:
    """What comes next, to be read by `fill`. Raises StreamRefused if the stream broke."""
    return await within(FIRST_BYTE_SECONDS, Incoming.take_over(reader, writer), "bytes")


async def fill(incoming: Incoming, view: memoryview, down: Bucket) -> None:
    """Fill `view` with the next bytes, as long as they keep coming."""
    async for _ in filled(incoming, view, down):
        pass


async def filled(incoming: Incoming, view: memoryview, down: Bucket) -> AsyncIterator[int]:
    """How much of `view` is filled, whenever that grows, until it is full."""
    at, flow = 0, Flow(_time())
    while at < len(view):
        at += await _read_into(incoming, view[at : at + down.gulp_bytes], flow, down)
        yield at


def widen(writer: asyncio.StreamWriter) -> None:
    """Make room for much data on its way; harmless where that cannot be."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES
        )


async def write_answer(writer: asyncio.StreamWriter, status: Status, length: int = 0) -> None:
    """The head of an answer."""
    await write(writer, bytes([status]) + length.to_bytes(8, "big"))


async def write(writer: asyncio.StreamWriter, data: Bytes) -> None:
    """All of `data`, as fast as the other side reads. Raises StreamRefused if it does not."""
    view = memoryview(data)
    for offset in range(0, len(view), CHUNK_BYTES):
        writer.write(view[offset : offset + CHUNK_BYTES])
        await _while_it_moves(writer, DRAIN_SECONDS, writer.drain, "a slow reader")


async def acknowledged(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_bytes: int
) -> None:
    """The other side read all `num_bytes`, or hung up. Raises StreamRefused if it is too slow."""
    seconds = min(ACKNOWLEDGE_SECONDS, patience_seconds(num_bytes))
    await _while_it_moves(writer, seconds, lambda: reader.read(1), "acknowledgement")


async def write_at_rate(writer: asyncio.StreamWriter, data: Bytes, up: Bucket) -> None:
    """All of `data`, no faster than `up` lets it flow."""
    step, view = up.chunk_bytes, memoryview(data)
    for offset in range(0, len(data), step):
        chunk = view[offset : offset + step]
        await up.take(len(chunk))
        await write(writer, chunk)


async def within(seconds: float, awaitable: Awaitable[Result], what: str) -> Result:
    """The result of waiting for the other side. Raises StreamRefused."""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError as error:
        raise StreamTooSlow(f"waited {seconds:.0f} s for {what}") from error
    except OSError as error:
        raise StreamRefused(f"the stream broke: {error}") from error
    except asyncio.IncompleteReadError as error:
        raise StreamRefused("the stream ended early") from error


async def _while_it_moves(
    writer: asyncio.StreamWriter, seconds: float, wait: Callable[[], Awaitable[object]], what: str
) -> None:
    """Wait for the other side, again and again as long as it takes what was written."""
    while True:
        unsent = _unsent(writer)
        try:
            await within(seconds, wait(), what)
        except StreamTooSlow:
            left = _unsent(writer)
            if not left or unsent - left < seconds * SLOWEST_FLOW / 2:
                raise
        else:
            return


def _unsent(writer: asyncio.StreamWriter) -> int:
    """Bytes written that the other side of the socket has not read, where the system tells."""
    num_bytes = writer.transport.get_write_buffer_size()
    with contextlib.suppress(OSError, ValueError):
        answer = fcntl.ioctl(writer.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        num_bytes += int.from_bytes(answer, sys.byteorder)
    return num_bytes


async def _read_into(incoming: Incoming, view: memoryview, flow: Flow, down: Bucket) -> int:
    """The next bytes, as many as there is room for in `view` or fewer; how many came."""
    reading = incoming.read_into(view)
    num_bytes = await within(flow.seconds_left(_time()), reading, "bytes")
    await _noted(num_bytes, flow, down)
    return num_bytes


async def _noted(num_bytes: int, flow: Flow, down: Bucket) -> None:
    if not num_bytes:
        raise StreamRefused("the stream ended early")
    if flow.note(num_bytes, _time()):
        raise StreamRefused("stalled: hardly any bytes came")
    flow.excuse(await down.take(num_bytes))


def _time() -> float:
    return asyncio.get_running_loop().time()
