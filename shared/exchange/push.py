"""Uploading a blob over a stream that we open ourselves: the way of those whom nobody can dial."""

import asyncio
from collections.abc import Iterable
from io import FileIO

from protocol.blobs import BlobRef
from shared.blobs import BlobStore
from shared.exchange.rates import Bucket
from shared.exchange.sources import WrongBytes
from shared.exchange.streams import (
    ACKNOWLEDGED,
    KEPT,
    READ_BYTES,
    UNIT_BYTES,
    BlobRequest,
    OpenStream,
    StreamRefused,
    asked,
    piece_range,
    read_answer,
    widen,
    within,
    write,
    write_at_rate,
)

WINDOW = 32
"""Units that may be on their way without being acknowledged: 8 MiB."""

UNIT_SECONDS = 60.0
"""How long one acknowledgement may take: slower lines than 4 kB/s do not count as lines."""


async def push(open_stream: OpenStream, ref: BlobRef, store: BlobStore, *, up: Bucket) -> None:
    """Upload what the other side lacks of the blob `ref`; returns once it is complete there.

    Raises StreamRefused, SourceBusy or WrongBytes with the reason (calling again goes on where this
    stopped), and BlobMissing if `store` does not have it.
    """
    path, pieces = store.path(ref.digest), store.pieces(ref.digest)
    request = BlobRequest(op="push", digest=ref.digest, offset=0, length=ref.size)
    body = pieces.model_dump_json().encode()
    async with asked(open_stream, request) as (_, reader, writer):
        await write(writer, len(body).to_bytes(4, "big") + body)
        missing = await _missing(reader, len(pieces.pieces))
        widen(writer)
        with path.open("rb", buffering=0) as file:
            await _send(file, [piece_range(ref, index) for index in missing], reader, writer, up)
        await _acknowledged(reader, KEPT, 1)


async def _missing(reader: asyncio.StreamReader, num_pieces: int) -> list[int]:
    length = await read_answer(reader)
    if length != -(-num_pieces // 8):
        raise StreamRefused(f"a bitmap of {length} bytes for {num_pieces} pieces")
    bits = await within(UNIT_SECONDS, reader.readexactly(length), "a bitmap")
    return [index for index in range(num_pieces) if bits[index // 8] >> (index % 8) & 1]


async def _send(
    file: FileIO,
    ranges: Iterable[tuple[int, int]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up: Bucket,
) -> None:
    unacknowledged = 0
    for start, end in ranges:
        for offset in range(start, end, READ_BYTES):
            file.seek(offset)
            data = await asyncio.to_thread(file.read, min(READ_BYTES, end - offset))
            for at in range(0, len(data), UNIT_BYTES):
                if unacknowledged == WINDOW:
                    unacknowledged -= await _acknowledged(reader, ACKNOWLEDGED, unacknowledged)
                await write_at_rate(writer, memoryview(data)[at : at + UNIT_BYTES], up)
                unacknowledged += 1
    while unacknowledged:
        unacknowledged -= await _acknowledged(reader, ACKNOWLEDGED, unacknowledged)


async def _acknowledged(reader: asyncio.StreamReader, expected: bytes, most: int) -> int:
    """Wait for the byte `expected`; how often it came, at most `most` times."""
    answer = await within(UNIT_SECONDS, reader.read(most), "acknowledgement")
    if not answer:
        raise StreamRefused("the stream ended before the blob was acknowledged")
    if answer.strip(expected):
        raise WrongBytes("the other side says that our bytes do not answer to the digest")
    return len(answer)
