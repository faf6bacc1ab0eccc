"""Real peers on loopback: real keys, certificates, libp2p daemons and blob stores."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange
from shared.exchange.serving import BlobServer, MayRead
from shared.exchange.sources import Source, Tier
from shared.exchange.streams import StreamSource
from shared.identity import Identity, sign_certificate
from shared.swarm.peer import Peer

RUN = "demo"
LISTEN = "/ip4/127.0.0.1/tcp/0"


class LoopbackSwarm:
    """Makes peers that trust one coordinator's key, and stops them in the end.

    The first peer started without `bootstrap` is the one that later peers join.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = Identity.create(folder / "coordinator.key")
        self.peers: list[Peer] = []

    def identity(self, name: str) -> Identity:
        """The key called `name`, made when it is first asked for."""
        return Identity.load_or_create(self.folder / f"{name}.key")

    def certificate(self, peer: str, *, seconds: int = 3600, run: str = RUN) -> SignedCertificate:
        """What the coordinator certifies of `peer`, good for `seconds` from now."""
        return sign_certificate(
            self.coordinator, peer=peer, run=run, expires_at=int(now()) + seconds
        )

    def store(self, name: str) -> BlobStore:
        """The blob store of the peer called `name`."""
        return BlobStore(self.folder / "blobs" / name)

    async def start(
        self, name: str, *, may_read: MayRead = lambda _digest, _peer: True, **changes: Any
    ) -> Peer:
        """Start the peer called `name`; by default everybody may read what it has."""
        identity = self.identity(name)
        bootstrap = [maddr for peer in self.peers[:1] for maddr in peer.maddrs]
        facts: dict[str, Any] = {
            "identity": identity,
            "certificate": self.certificate(identity.peer_id),
            "coordinator": self.coordinator.peer_id,
            "run": RUN,
            "listen": [LISTEN],
            "bootstrap": bootstrap,
            "server": BlobServer(self.store(name), may_read),
        }
        peer = await Peer.start(**(facts | changes))
        self.peers.append(peer)
        return peer

    async def fetch(self, name: str, asker: Peer, ref: BlobRef) -> bytes:
        """The bytes of a blob, once the peer called `name` has fetched it from whom the DHT names.

        Raises FetchFailed.
        """

        async def find() -> list[Source]:
            return [
                StreamSource(
                    asker.opener(peer, record.m), peer=peer, route="peer", down=exchange.down
                )
                for peer, record in await asker.providers(ref.digest)
            ]

        store = self.store(name)
        exchange = Exchange(store)
        await exchange.fetch(ref, [Tier("peer", find)])
        return store.read(ref, max_bytes=ref.size)

    async def stop(self) -> None:
        """Stop every peer that was started."""
        for peer in reversed(self.peers):
            await peer.stop()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Return when `condition` holds; TimeoutError if it does not in time."""
        async with asyncio.timeout(60):
            while not await condition():  # noqa: ASYNC110 - peers have no event for each condition
                await asyncio.sleep(0.02)


@pytest.fixture
async def loopback_swarm(tmp_path: Path) -> AsyncIterator[LoopbackSwarm]:
    """A swarm on 127.0.0.1 that is stopped after the test."""
    swarm = LoopbackSwarm(tmp_path)
    yield swarm
    await swarm.stop()


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Finds TCP ports of 127.0.0.1 on which nobody listens."""

    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]

    return find
