"""A peer with a store that does as it is told: it provides the file, or fetches it again and again.

Keys, certificates, the libp2p daemon, the exchange and the store are those of a real worker.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from typing_extensions import override

from benchmarks.transfer.bare import PROTOCOL, FileSender, Taken, take, take_over_http
from benchmarks.transfer.orders import SideSettings, obey, run, say, settings
from protocol.blobs import BlobRef
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange
from shared.exchange.over_http import HttpSource
from shared.exchange.push import push
from shared.exchange.rates import Bucket, Rates
from shared.exchange.serving import BlobServer
from shared.exchange.sources import Source, Tier
from shared.exchange.streams import StreamSource
from shared.identity import Identity, sign_certificate
from shared.swarm.daemon import Daemon
from shared.swarm.peer import Peer

RUN = "benchmark"
COORDINATOR = "coordinator.key"


class _Counted(Bucket):
    """No limit; counts what flows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    @override
    async def take(self, num_bytes: int) -> float:
        self.num_bytes += num_bytes
        return await super().take(num_bytes)


class Side:
    """One process. Orders are its public coroutines."""

    def __init__(self, given: SideSettings, folder: Path) -> None:
        self._given = given
        self._folder = folder
        self._store = BlobStore(folder)
        self._taken = folder / "taken"
        self._down = _Counted()
        self._exchange = Exchange(self._store, down=self._down)
        self._wanted: BlobRef | None = None
        self._client = httpx.AsyncClient(trust_env=False, timeout=60.0)
        self._peer: Peer
        self._tcp: asyncio.Server

    async def start(self) -> dict[str, Any]:
        """Start everything, and what the parent must know of it."""
        given, folder = self._given, Path(self._given.folder)
        coordinator = Identity.load(folder / COORDINATOR)
        identity = Identity.load_or_create(folder / f"{given.name}.key")
        server = BlobServer(
            self._store,
            lambda _digest, _peer: True,
            may_push=lambda _digest, _peer: self._wanted,
            rates=Rates(up=Bucket(given.up)),
        )
        self._peer = await Peer.start(
            identity=identity,
            certificate=sign_certificate(
                coordinator, peer=identity.peer_id, run=RUN, expires_at=int(now()) + 36_000
            ),
            coordinator=coordinator.peer_id,
            run=RUN,
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=given.bootstrap,
            server=server,
        )
        sender = FileSender(Path(given.file))
        await self._daemon.handle(PROTOCOL, sender.handle)
        self._tcp = await asyncio.start_server(sender.send, "127.0.0.1", 0)
        return {
            "python": os.getpid(),
            "p2pd": self._peer.daemon_pid,
            "peer": self._peer.peer_id,
            "maddrs": self._peer.maddrs,
            "port": self._tcp.sockets[0].getsockname()[1],
        }

    async def stop(self) -> None:
        """End everything."""
        self._tcp.close()
        await self._client.aclose()
        await self._peer.stop()

    async def hold(self) -> dict[str, Any]:
        """Keep the file as a blob; which one it is."""
        ref = await asyncio.to_thread(self._store.add_file, Path(self._given.file))
        return ref.model_dump()

    async def settle(self, ref: dict[str, Any]) -> None:
        """Forget what came, and give unused memory back to the system."""
        self._wanted = BlobRef.model_validate(ref)
        self._taken.unlink(missing_ok=True)
        self._store.delete(self._wanted.digest)
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    async def raw(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Take the file over a raw libp2p stream."""
        [server] = servers
        opener = self._daemon.opener(server["peer"], server["maddrs"], PROTOCOL)
        return await take(*await opener(), self._taken, ref["size"])

    async def tcp(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Take the file over a TCP connection."""
        [server] = servers
        ends = await asyncio.open_connection("127.0.0.1", server["port"])
        return await take(*ends, self._taken, ref["size"])

    async def http(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Take the file over HTTP."""
        [server] = servers
        url = f"{server['url']}/file"
        return await take_over_http(self._client, url, self._taken, ref["size"])

    async def https(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Take the file over HTTP and TLS."""
        [server] = servers
        context = ssl.create_default_context(cafile=server["certificate"])
        async with httpx.AsyncClient(trust_env=False, timeout=60.0, verify=context) as client:
            url = f"{server['secure_url']}/file"
            return await take_over_http(client, url, self._taken, ref["size"])

    async def fetch(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Fetch the blob from peers."""
        return await self._fetch(ref, [self._source(server) for server in servers])

    async def fetch_http(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Fetch the blob from the network role."""
        [server] = servers
        url = f"{server['url']}/v1/blobs/{ref['digest']}"
        return await self._fetch(ref, [HttpSource(self._client, url)])

    async def push(self, servers: Sequence[dict[str, Any]], ref: dict[str, Any]) -> Taken:
        """Push the blob to a peer."""
        [server] = servers
        opener = self._peer.opener(server["peer"], server["maddrs"])
        started = time.perf_counter()
        await push(opener, BlobRef.model_validate(ref), self._store, up=Bucket())
        return Taken(None, time.perf_counter() - started)

    async def sip(
        self, servers: Sequence[dict[str, Any]], ref: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Fetch for so long, however far that gets; how many bytes came."""
        before, tier = (
            self._down.num_bytes,
            self._tier([self._source(server) for server in servers]),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exchange.fetch(BlobRef.model_validate(ref), [tier])
        return {"num_bytes": self._down.num_bytes - before}

    @property
    def _daemon(self) -> Daemon:
        """Raw streams are opened and answered by the daemon that the peer runs."""
        daemon = self._peer._watchdog.daemon
        assert daemon is not None
        return daemon

    def _source(self, server: dict[str, Any]) -> Source:
        opener = self._peer.opener(server["peer"], server["maddrs"])
        return StreamSource(opener, peer=server["peer"], route="direct", down=self._exchange.down)

    @staticmethod
    def _tier(sources: Sequence[Source]) -> Tier:
        async def find() -> Sequence[Source]:
            return sources

        return Tier("direct", find)

    async def _fetch(self, ref: dict[str, Any], sources: Sequence[Source]) -> Taken:
        started = time.perf_counter()
        await self._exchange.fetch(BlobRef.model_validate(ref), [self._tier(sources)])
        return Taken(None, time.perf_counter() - started)


async def main() -> None:
    """Obeys until standard input ends."""
    given = settings()
    logging.basicConfig(level=logging.WARNING)
    side = Side(given, Path(given.folder) / given.name)
    say(await side.start())
    orders = (
        side.hold,
        side.settle,
        side.raw,
        side.tcp,
        side.http,
        side.https,
        side.fetch,
        side.fetch_http,
        side.push,
        side.sip,
    )
    try:
        await obey({order.__name__: order for order in orders})
    finally:
        await side.stop()


if __name__ == "__main__":
    run(main(), settings().loop)
