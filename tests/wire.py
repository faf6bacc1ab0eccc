"""Streams as libp2p has them, over a Unix socket, to any handler that a test sets."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange
from shared.exchange.rates import Bucket
from shared.exchange.serving import BlobServer
from shared.exchange.sources import Route, Source, Tier
from shared.exchange.streams import StreamSource

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
        self.requests: list[dict[str, Any]] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.handler is not None
        try:
            await self.handler(reader, writer)
        finally:
            writer.close()

    def serve(self, store: BlobStore, peer: str = "asker", allowed: bool = True) -> BlobServer:
        server = BlobServer(store, lambda _digest, _peer: allowed)
        self.handler = as_peer(server, peer)
        return server

    def source(self, name: str = "provider", route: Route = "direct") -> Source:
        return StreamSource(self.open, peer=name, route=route, down=Bucket())

    async def fetch(self, ref: BlobRef, store: BlobStore) -> str:
        """Fetch from the handler alone."""
        return await Exchange(store).fetch(ref, [tier(self.source())])


def tier(*sources: Source, route: Route = "direct") -> Tier:
    async def find() -> list[Source]:
        return list(sources)

    return Tier(route, find)


def as_peer(server: BlobServer, name: str) -> Handler:
    return lambda reader, writer: server.serve(Remote(name), reader, writer)


def send(writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
    body = json.dumps(request).encode()
    writer.write(len(body).to_bytes(2, "big") + body)


async def read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readexactly(2)
    found: dict[str, Any] = json.loads(await reader.readexactly(int.from_bytes(head, "big")))
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
