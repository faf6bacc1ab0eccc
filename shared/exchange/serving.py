"""Answers streams: sends the blobs of a store to whom may read them, takes those that are wanted.

Never more than so many streams at once, of one peer and of all. Strangers who ask nothing, or for
what is not theirs, get no further than the slots for asking.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from protocol.blobs import BlobRef, PieceList
from shared.blobs import BadBlob, BadPiece, BlobMissing, BlobStore, PartialBlob
from shared.exchange.incoming import Incoming
from shared.exchange.rates import Bucket, Rates, patience_seconds
from shared.exchange.slots import Asking, Slots
from shared.exchange.sources import SourceFailed
from shared.exchange.streams import (
    ACKNOWLEDGED,
    KEPT,
    READ_BYTES,
    REFUSED,
    REQUEST_SECONDS,
    UNIT_BYTES,
    BlobRequest,
    Status,
    StreamRefused,
    acknowledged,
    fill,
    filled,
    list_bound,
    read_request,
    taken_over,
    widen,
    within,
    write,
    write_answer,
    write_at_rate,
)
from shared.logs import facts

log = logging.getLogger(__name__)

MayRead = Callable[[str, str], bool]
"""(digest, peer id): may this peer read the blob? Whatever is not plainly True denies."""

MayPush = Callable[[str, str], BlobRef | None]
"""(digest, peer id): the blob with this digest if it is wanted from this peer now."""


@dataclass(frozen=True)
class Limits:
    """Streams at once. `asking`: whose request is not read yet, or was refused."""

    sending: int = 8
    sending_per_peer: int = 4
    receiving: int = 4
    receiving_per_peer: int = 2
    asking: int = 64
    asking_per_peer: int = 4


class StreamInfo(Protocol):
    """What libp2p says of an incoming stream."""

    @property
    def peer_id(self) -> Any:
        """The remote peer, proven in the handshake."""


class BlobServer:
    """Answers requests for the blobs of one store. `serve` is the libp2p stream handler.

    `may_push` None: nothing is taken. `on_pushed` is told of each blob that is complete.
    """

    def __init__(
        self,
        store: BlobStore,
        may_read: MayRead,
        *,
        may_push: MayPush | None = None,
        on_pushed: Callable[[BlobRef, str], None] = lambda _ref, _peer: None,
        rates: Rates | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._may_read = may_read
        self._may_push = may_push
        self._on_pushed = on_pushed
        self._rates = rates or Rates()
        limits = limits or Limits()
        self._asking = Asking(limits.asking, limits.asking_per_peer)
        self._sending = Slots(limits.sending, limits.sending_per_peer)
        self._receiving = Slots(limits.receiving, limits.receiving_per_peer)

    @property
    def num_streams(self) -> int:
        """Streams on which a blob is being sent or received now."""
        return self._sending.num_taken + self._receiving.num_taken

    async def serve(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one stream. Never raises: an error of one asker concerns nobody else."""
        peer = info.peer_id.to_base58()
        try:
            await self._answer(peer, reader, writer)
        except (SourceFailed, BlobMissing, FileNotFoundError, ValidationError) as error:
            log.debug("stream of %s ended: %r", peer, error)
        except OSError as error:
            log.error("the disk failed %s", facts(peer=peer, error=error))
        except Exception:
            log.exception("stream of %s failed", peer)
        finally:
            writer.close()

    async def _answer(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with self._asking.taken(peer) as free:
            if not free:
                await write_answer(writer, Status.BUSY)
                return
            request = await within(REQUEST_SECONDS, read_request(reader), "a request")
            wanted = self._wanted(request, peer)
            if wanted is None and not self._readable(request, peer):
                await write_answer(writer, Status.UNKNOWN)
                await within(REQUEST_SECONDS, reader.read(1), "acknowledgement")
                return
        slots = self._sending if wanted is None else self._receiving
        with slots.taken(peer) as free:
            if free and wanted is not None:
                await self._receive(wanted, peer, await taken_over(reader, writer), writer)
                return
            # The asker has read it all when it says so or hangs up; closing earlier cuts its end.
            if free:
                num_bytes = await self._send(request, writer)
                await acknowledged(reader, writer, num_bytes)
            else:
                await write_answer(writer, Status.BUSY)
                await within(REQUEST_SECONDS, reader.read(1), "acknowledgement")

    def _readable(self, request: BlobRequest, peer: str) -> bool:
        digest = request.digest
        try:
            return (
                request.op != "push"
                and self._may_read(digest, peer) is True
                and self._store.has(digest)
            )
        except Exception:
            log.exception("may_read failed for blob %s: denied", digest)
            return False

    def _wanted(self, request: BlobRequest, peer: str) -> BlobRef | None:
        if request.op != "push" or self._may_push is None:
            return None
        try:
            ref = self._may_push(request.digest, peer)
        except Exception:
            log.exception("may_push failed for blob %s: denied", request.digest)
            return None
        asked = (request.digest, request.length)
        return ref if ref is not None and (ref.digest, ref.size) == asked else None

    async def _send(self, request: BlobRequest, writer: asyncio.StreamWriter) -> int:
        """The answer; how many bytes its body has."""
        if request.op == "bytes":
            return await self._send_bytes(request, writer)
        body = self._store.pieces(request.digest).model_dump_json().encode()
        await write_answer(writer, Status.OK, len(body))
        await self._rates.up.take(len(body))
        await write(writer, body)
        return len(body)

    async def _send_bytes(self, request: BlobRequest, writer: asyncio.StreamWriter) -> int:
        with self._store.path(request.digest).open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            num_bytes = left = max(0, min(request.length, size - request.offset))
            file.seek(request.offset)
            widen(writer)
            await write_answer(writer, Status.OK, left)
            while left:
                data = await asyncio.to_thread(file.read, min(READ_BYTES, left))
                if not data:
                    raise EOFError(f"blob {request.digest}: {left} bytes fewer than its length")
                left -= len(data)
                await write_at_rate(writer, data, self._rates.up)
        return num_bytes

    async def _receive(
        self, ref: BlobRef, peer: str, incoming: Incoming, writer: asyncio.StreamWriter
    ) -> None:
        """A push, from the piece list to the last piece, going on where an earlier one ended."""
        await write_answer(writer, Status.OK)
        try:
            partial = await _begin(ref, incoming, self._store, self._rates.down)
            missing = await asyncio.to_thread(partial.missing)
            bitmap = _bitmap(missing, len(partial.pieces.pieces))
            await write_answer(writer, Status.OK, len(bitmap))
            await write(writer, bitmap)
            await _receive_pieces(partial, missing, incoming, writer, self._rates.down)
            await asyncio.to_thread(partial.commit)
        except (BadBlob, BadPiece, ValidationError) as error:
            log.warning("wrong bytes pushed %s", facts(peer=peer, digest=ref.digest, error=error))
            await write(writer, REFUSED)
        else:
            self._on_pushed(ref, peer)
            await write(writer, KEPT)
        reading = incoming.read_into(memoryview(bytearray(1)))
        await within(patience_seconds(1), reading, "acknowledgement")


async def _begin(ref: BlobRef, incoming: Incoming, store: BlobStore, down: Bucket) -> PartialBlob:
    head = bytearray(4)
    reading = fill(incoming, memoryview(head), Bucket())
    await within(REQUEST_SECONDS, reading, "the length of a piece list")
    length, bound = int.from_bytes(head, "big"), list_bound(ref)
    if length > bound:
        raise StreamRefused(f"a piece list of {length} bytes, expected at most {bound}")
    body = bytearray(length)
    await fill(incoming, memoryview(body), down)
    return await asyncio.to_thread(store.partial, ref, PieceList.model_validate_json(body))


async def _receive_pieces(
    partial: PartialBlob,
    missing: Sequence[int],
    incoming: Incoming,
    writer: asyncio.StreamWriter,
    down: Bucket,
) -> None:
    """Each is verified and written while the next one comes."""
    writing: asyncio.Future[None] | None = None
    try:
        for index in missing:
            piece = await _read_piece(incoming, writer, down, partial.piece_bytes(index))
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(asyncio.to_thread(partial.write_piece, index, piece))
    finally:
        if writing is not None:
            await writing


async def _read_piece(
    incoming: Incoming, writer: asyncio.StreamWriter, down: Bucket, length: int
) -> bytearray:
    """The next piece. Whatever came of it is acknowledged at once, in whole units."""
    piece, acknowledged = bytearray(length), 0
    async for at in filled(incoming, memoryview(piece), down):
        num_units = -(-at // UNIT_BYTES) if at == length else at // UNIT_BYTES
        await write(writer, ACKNOWLEDGED * (num_units - acknowledged))
        acknowledged = num_units
    return piece


def _bitmap(missing: tuple[int, ...], num_pieces: int) -> bytes:
    """One bit a piece, the lowest first: 1 where it is missing."""
    bits = bytearray(-(-num_pieces // 8))
    for index in missing:
        bits[index // 8] |= 1 << (index % 8)
    return bytes(bits)
