"""One asker on loopback, and providers that are processes of their own, to be killed at will."""

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from protocol.blobs import BlobRef
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.rates import Bucket
from shared.exchange.serving import BlobServer
from shared.exchange.sources import Route, Source, Tier
from shared.exchange.streams import StreamSource
from shared.identity import Identity, sign_certificate
from shared.swarm.peer import Peer
from tests.integration.exchange import provider as program
from tests.integration.exchange.provider import Flows, Lie, Plan

RUN = "demo"

LIST_BYTES = 4096
"""More than the piece lists of all sources of one of these fetches take."""


class Counting(Bucket):
    """No limit; counts what flows."""

    num_bytes = 0

    async def take(self, num_bytes: int) -> float:
        self.num_bytes += num_bytes
        return await super().take(num_bytes)


class Provider:
    """The process of one provider, seen from outside."""

    def __init__(self, context: Any, plan: Plan) -> None:
        self._context, self.plan = context, plan
        self.peer_id = Identity.load(plan.key).peer_id
        self.store = BlobStore(plan.folder)
        self._flows = Flows(sent=context.Value("Q", 0), received=context.Value("Q", 0))
        self.heard: list[tuple[str, Any]] = []
        self._processes: list[psutil.Process] = []

    async def begin(self) -> None:
        """Start the process, which takes up what an earlier one left."""
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=program.run, args=(self.plan, theirs, self._flows), daemon=True
        )
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid
        self.maddrs, self.daemon_pid, self.url = await asyncio.to_thread(self._wait_for, "up")
        self._processes += [psutil.Process(self.pid), psutil.Process(self.daemon_pid)]

    async def revive(self) -> None:
        """Start it again if it or its daemon was killed or stopped."""
        for process in self._processes[-2:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    continue
            self.kill()
            await self.begin()
            return

    @property
    def sent(self) -> int:
        """Bytes that it has sent, in all its lives."""
        return int(self._flows.sent.value)

    @property
    def received(self) -> int:
        """Bytes that came to it over libp2p, piece lists included, in all its lives."""
        return int(self._flows.received.value)

    async def tell(self, command: str, value: object = None) -> None:
        """Have it do something, and return when it is done."""
        self._pipe.send((command, value))
        await asyncio.to_thread(self._wait_for, "done")

    async def lies(self, **lie: Any) -> None:
        """From now on it serves like this."""
        await self.tell("lie", Lie(**lie))

    def hears(self, event: str) -> list[Any]:
        """What it said of `event` up to now."""
        while self._pipe.poll():
            self.heard.append(self._pipe.recv())
        return [value for name, value in self.heard if name == event]

    def signal(self, number: int) -> None:
        """Send a signal to the process and not to its daemon."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End process and daemon, whichever that is by now, as a power cut does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._processes += psutil.Process(self.pid).children()
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.join(10)
        self._pipe.close()

    def _wait_for(self, event: str) -> Any:
        assert self._pipe.poll(30), f"no {event} from a provider"
        name, value = self._pipe.recv()
        while name != event:
            self.heard.append((name, value))
            assert self._pipe.poll(30), f"no {event} from a provider"
            name, value = self._pipe.recv()
        return value


class Ground:
    """A coordinator's key, one asker in this process, and providers in others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = Identity.create(folder / "coordinator.key")
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([program.__name__])
        self._providers: list[Provider] = []
        self._peers: list[Peer] = []
        self._count = 0
        self.down = Counting()
        self.asker: Peer

    async def start(self) -> None:
        """Start the asker."""
        self.asker = await self._peer("asker")

    async def stranger(self) -> Peer:
        """Another peer in this process."""
        return await self._peer(f"stranger {len(self._peers)}")

    async def stop(self) -> None:
        """End everything."""
        self.end()
        for peer in self._peers:
            await peer.stop()

    async def _peer(self, name: str) -> Peer:
        key = Identity.create(self.folder / f"{name}.key")
        peer = await Peer.start(
            identity=key,
            certificate=self.certificate(key.peer_id),
            coordinator=self.coordinator.peer_id,
            run=RUN,
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=(),
            server=BlobServer(self.store(), lambda *_: False),
        )
        self._peers.append(peer)
        return peer

    def certificate(self, peer: str) -> Any:
        return sign_certificate(self.coordinator, peer=peer, run=RUN, expires_at=int(now()) + 3600)

    def store(self, name: str = "") -> BlobStore:
        """The store called `name`, a new one by default."""
        self._count += 1
        return BlobStore(self.folder / "blobs" / (name or str(self._count)))

    async def provider(self, name: str = "", **changes: Any) -> Provider:
        """Start a provider that everybody may read from."""
        self._count += 1
        key = Identity.load_or_create(self.folder / f"{name or self._count}.key")
        plan = Plan(
            folder=self.folder / "blobs" / (name or str(self._count)),
            key=key.path,
            certificate=self.certificate(key.peer_id).model_dump_json(),
            coordinator=self.coordinator.peer_id,
            run=RUN,
        )
        found = Provider(self._context, replace(plan, **changes))
        self._providers.append(found)
        await found.begin()
        return found

    def source(self, provider: Provider, route: Route = "peer") -> Source:
        """The provider, reached where it said that it listens."""
        opener = self.asker.opener(provider.peer_id, provider.maddrs)
        return StreamSource(opener, peer=provider.peer_id, route=route, down=self.down)

    def tier(self, *providers: Provider, route: Route = "peer") -> Tier:
        async def find() -> Sequence[Source]:
            return [self.source(one, route) for one in providers]

        return Tier(route, find)

    def found(self, ref: BlobRef) -> Tier:
        """Whoever says in the DHT to have the blob."""

        async def find() -> Sequence[Source]:
            return [
                StreamSource(
                    self.asker.opener(name, record.m), peer=name, route="peer", down=self.down
                )
                for name, record in await self.asker.providers(ref.digest)
                if name != self.asker.peer_id
            ]

        return Tier("peer", find)

    def reopened(self, store: BlobStore) -> BlobStore:
        """The same folder as another process finds it."""
        return BlobStore(store.root)

    @contextlib.contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        """Bytes that reach the asker from here on, piece lists included."""
        before = self.down.num_bytes
        yield lambda: self.down.num_bytes - before

    def end(self, *providers: Provider) -> None:
        """End these providers, all of them by default."""
        for one in providers or tuple(self._providers):
            if one in self._providers:
                one.kill()
                self._providers.remove(one)


async def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes have no event for it
            await asyncio.sleep(0.01)


async def fetched(exchange: Exchange, ref: BlobRef, tiers: Sequence[Tier]) -> str:
    """The route by which the blob came in the end, however often it takes: as a worker asks."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await exchange.fetch(ref, tiers)
            except FetchFailed:
                await asyncio.sleep(0.1)
