"""Blobs over raw libp2p streams: who may have them, in what bytes, and for how long we wait.

A request is a 2-byte length and JSON `{"op": "pieces"|"bytes", "digest", "offset", "length"}`. The
answer is a status byte, an 8-byte length, that many bytes, and then the asker's acknowledging byte:
whoever closes right after writing loses the end. The stream's remote peer id is proven by libp2p.
Refused and unknown blobs look the same. End of stream is never success: lengths and digests are.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import IntEnum
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field, ValidationError

from protocol.blobs import MAX_BLOB_BYTES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.ids import Digest
from protocol.values import Value
from shared.blobstore import BadBlob, BlobMissing, BlobStore, PartialBlob, runs

log = logging.getLogger(__name__)

Result = TypeVar("Result")

PROTOCOL = "hdee/blob/1"
CHUNK_BYTES = 256 * 1024
REQUEST_SECONDS = 3.0
FIRST_BYTE_SECONDS = 15.0
IDLE_SECONDS = 20.0
PIECE_SECONDS = 600.0
"""For one whole piece or piece list, so that nobody holds us up by a byte now and then (7 kB/s)."""
DRAIN_SECONDS = 30.0
ACKNOWLEDGE_SECONDS = 30.0
MAX_STREAMS = 8
MAX_STREAMS_PER_PEER = 2
MAX_ASKING = 64
MAX_ASKING_PER_PEER = 4
"""Streams whose request is not read yet, or refused: strangers get no further than these."""

_MAX_REQUEST_BYTES = 1024
_READ_BYTES = 1024 * 1024
_ACKNOWLEDGE = b"k"

MayRead = Callable[[str, str], bool]
"""(digest, peer id): may this peer read the blob? Whatever is not plainly True denies."""


class Status(IntEnum):
    """The first byte of an answer."""

    OK = 0
    UNKNOWN = 1
    BUSY = 2


class StreamRefused(Exception):
    """The other side gave no usable answer; `reason` says why. Another may."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongBytes(StreamRefused):
    """A provider sent what does not answer to the digest: do not ask it again for this blob."""


class _Request(Value):
    op: Literal["pieces", "bytes"]
    digest: Digest
    offset: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    length: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]


class StreamInfo(Protocol):
    """What libp2p says of an incoming stream."""

    @property
    def peer_id(self) -> Any:
        """The remote peer, proven in the handshake."""


OpenStream = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a stream to one provider; raises StreamRefused if that cannot be done in time."""


class _Slots:
    """So many streams at once, in all and for one peer."""

    def __init__(self, in_all: int, per_peer: int) -> None:
        self._in_all, self._per_peer = in_all, per_peer
        self._taken: Counter[str] = Counter()

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    @contextmanager
    def taken(self, peer: str) -> Iterator[bool]:
        """Whether there is a slot for this peer, taking it while this lasts."""
        if self.num_taken >= self._in_all or self._taken[peer] >= self._per_peer:
            yield False
            return
        self._taken[peer] += 1
        try:
            yield True
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


class BlobServer:
    """Answers requests for the blobs of one store. `serve` is the libp2p stream handler."""

    def __init__(self, store: BlobStore, may_read: MayRead) -> None:
        self._store = store
        self._may_read = may_read
        self._asking = _Slots(MAX_ASKING, MAX_ASKING_PER_PEER)
        self._answering = _Slots(MAX_STREAMS, MAX_STREAMS_PER_PEER)

    @property
    def num_streams(self) -> int:
        """Streams that are being sent a blob now."""
        return self._answering.num_taken

    async def serve(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one stream. Never raises: an error of one asker concerns nobody else."""
        peer = info.peer_id.to_base58()
        try:
            await self._answer(peer, reader, writer)
        except (StreamRefused, BlobMissing, OSError, ValidationError) as error:
            log.debug("stream of %s ended: %r", peer, error)
        except Exception:
            log.exception("stream of %s failed", peer)
        finally:
            writer.close()

    async def _answer(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with self._asking.taken(peer) as free:
            if not free:
                await _write_head(writer, Status.BUSY, 0)
                return
            request = await _within(REQUEST_SECONDS, _read_request(reader), "a request")
            if not self._permitted(request.digest, peer):
                await _write_head(writer, Status.UNKNOWN, 0)
                await _within(REQUEST_SECONDS, reader.read(1), "acknowledgement")
                return
        with self._answering.taken(peer) as free:
            if free:
                await self._send(request, writer)
            else:
                await _write_head(writer, Status.BUSY, 0)
            # The asker has read it all when it says so or hangs up; closing earlier cuts its end.
            seconds = ACKNOWLEDGE_SECONDS if free else REQUEST_SECONDS
            await _within(seconds, reader.read(1), "acknowledgement")

    def _permitted(self, digest: str, peer: str) -> bool:
        try:
            return self._may_read(digest, peer) is True and self._store.has(digest)
        except Exception:
            log.exception("may_read failed for blob %s: denied", digest)
            return False

    async def _send(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        if request.op == "bytes":
            await self._send_bytes(request, writer)
            return
        body = self._store.pieces(request.digest).model_dump_json().encode()
        await _write_head(writer, Status.OK, len(body))
        await _write(writer, body)

    async def _send_bytes(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        with self._store.path(request.digest).open("rb") as file:
            size = file.seek(0, 2)
            left = max(0, min(request.length, size - request.offset))
            file.seek(request.offset)
            await _write_head(writer, Status.OK, left)
            while left:
                data = await asyncio.to_thread(file.read, min(_READ_BYTES, left))
                if not data:
                    raise EOFError(f"blob {request.digest}: {left} bytes fewer than its length")
                left -= len(data)
                await _write(writer, data)


async def fetch_from(open_stream: OpenStream, ref: BlobRef, store: BlobStore) -> None:
    """Fetch what is missing of `ref` from one provider into `store`, and commit it.

    Raises StreamRefused if the provider has it not, is too slow or breaks off, WrongBytes if it
    sends something else; verified pieces stay. Raises OSError if this machine's disk fails.
    """
    try:
        partial = await _begin(open_stream, ref, store)
        for first, last in runs(partial.missing()):
            await _fetch_run(open_stream, partial, first, last)
        await asyncio.to_thread(partial.commit)
    except (BadBlob, ValidationError) as error:
        raise WrongBytes(str(error)) from error


async def _begin(open_stream: OpenStream, ref: BlobRef, store: BlobStore) -> PartialBlob:
    arriving = store.arriving(ref.digest)
    if arriving is not None:
        return await asyncio.to_thread(store.partial, ref, arriving.pieces)
    # JSON of a piece list: 64 digits, two quotes and a comma a piece.
    bound = 70 * -(-ref.size // PIECE_BYTES) + 256
    request = _Request(op="pieces", digest=ref.digest, offset=0, length=bound)
    async with _asked(open_stream, request) as (length, reader):
        if length > bound:
            raise WrongBytes(f"a piece list of {length} bytes, expected at most {bound}")
        reading = _read(reader, length, IDLE_SECONDS)
        pieces = PieceList.model_validate_json(
            await _within(PIECE_SECONDS, reading, "the piece list")
        )
    return await asyncio.to_thread(store.partial, ref, pieces)


async def _fetch_run(open_stream: OpenStream, partial: PartialBlob, first: int, last: int) -> None:
    offset = first * PIECE_BYTES
    left = min((last + 1) * PIECE_BYTES, partial.ref.size) - offset
    request = _Request(op="bytes", digest=partial.ref.digest, offset=offset, length=left)
    async with _asked(open_stream, request) as (length, reader):
        if length != left:
            raise WrongBytes(f"{length} bytes offered, expected {left}")
        for index in range(first, last + 1):
            reading = _read(reader, min(PIECE_BYTES, left), IDLE_SECONDS)
            piece = await _within(PIECE_SECONDS, reading, f"piece {index}")
            left -= len(piece)
            await asyncio.to_thread(partial.write_piece, index, piece)


@asynccontextmanager
async def _asked(
    open_stream: OpenStream, request: _Request
) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """One stream, asked and answered: the length of the body, and where to read it."""
    reader, writer = await open_stream()
    try:
        body = request.model_dump_json().encode()
        await _write(writer, len(body).to_bytes(2, "big") + body)
        head = await _read(reader, 9, FIRST_BYTE_SECONDS)
        if head[0] == Status.BUSY:
            raise StreamRefused("the provider is busy")
        if head[0] != Status.OK:
            raise StreamRefused("the provider does not have it for us")
        yield int.from_bytes(head[1:], "big"), reader
        await _write(writer, _ACKNOWLEDGE)
    finally:
        writer.close()


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    length = int.from_bytes(await _read(reader, 2, REQUEST_SECONDS), "big")
    if length > _MAX_REQUEST_BYTES:
        raise StreamRefused(f"a request of {length} bytes")
    return _Request.model_validate_json(await _read(reader, length, REQUEST_SECONDS))


async def _read(reader: asyncio.StreamReader, length: int, idle_seconds: float) -> bytes:
    """Exactly `length` bytes, which the caller has bounded."""
    data = bytearray()
    while len(data) < length:
        wanted = min(CHUNK_BYTES, length - len(data))
        chunk = await _within(idle_seconds, reader.read(wanted), "bytes")
        if not chunk:
            raise StreamRefused(f"the stream ended {length - len(data)} bytes early")
        data += chunk
    return bytes(data)


async def _write_head(writer: asyncio.StreamWriter, status: Status, length: int) -> None:
    await _write(writer, bytes([status]) + length.to_bytes(8, "big"))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    view = memoryview(data)
    for offset in range(0, len(view), CHUNK_BYTES):
        writer.write(view[offset : offset + CHUNK_BYTES])
        await _within(DRAIN_SECONDS, writer.drain(), "a slow reader")


async def _within(seconds: float, awaitable: Awaitable[Result], what: str) -> Result:
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError as error:
        raise StreamRefused(f"waited {seconds:.0f} s for {what}") from error
    except OSError as error:
        raise StreamRefused(f"the stream broke: {error}") from error
