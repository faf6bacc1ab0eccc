"""What our exchange is compared with: a file sent and written with as little as possible.

No hashing, no resuming, no limits, no timeouts; but the file is synced once in the end, as the
store does before it calls a blob complete.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PROTOCOL = "hdee/bench-raw/1"
CHUNK_BYTES = 256 * 1024
GO, DONE = b"g", b"k"


@dataclass(frozen=True)
class Taken:
    """Seconds until the last byte was written (None: not told), and until all were on disk."""

    written_seconds: float | None
    seconds: float


class FileSender:
    """Sends the file to whoever opens a stream or a connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def handle(
        self, _info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One libp2p stream."""
        await self.send(reader, writer)

    async def send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection."""
        try:
            await reader.readexactly(1)
            with self._path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    writer.write(chunk)
                    await writer.drain()
            await reader.read(1)
        finally:
            writer.close()


async def take(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path, size: int
) -> Taken:
    """Write `size` bytes from the stream to `path`. Raises EOFError if there are fewer."""
    started, left = time.perf_counter(), size
    writer.write(GO)
    with path.open("wb", buffering=0) as file:
        while left:
            chunk = await reader.read(CHUNK_BYTES)
            if not chunk:
                raise EOFError(f"{left} bytes fewer than {size}")
            file.write(chunk)
            left -= len(chunk)
        writer.write(DONE)
        written = time.perf_counter() - started
        os.fsync(file.fileno())
    writer.close()
    return Taken(written, time.perf_counter() - started)


async def take_over_http(client: httpx.AsyncClient, url: str, path: Path, size: int) -> Taken:
    """Write the body of a GET, `size` bytes, to `path`."""
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        async with client.stream("GET", url) as response:
            response.raise_for_status()
            async for chunk in response.aiter_raw():
                file.write(chunk)
        if file.tell() != size:
            raise EOFError(f"{file.tell()} bytes, expected {size}")
        written = time.perf_counter() - started
        os.fsync(file.fileno())
    return Taken(written, time.perf_counter() - started)
