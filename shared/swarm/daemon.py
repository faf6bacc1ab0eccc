"""One life of a libp2p daemon and its DHT node.

Calls into hivemind may hang for ever or raise anything, and it does not notice that its daemon
died. So every call is bounded here, every failure is a SwarmUnavailable, and `died` tells of a
death.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.utils.multiaddr import Multiaddr

from shared.swarm.guards import RequestGuard, SignedRecordValidator
from shared.swarm.streams import OpenStream, StreamRefused

START_SECONDS = 60.0
JOIN_SECONDS = 30.0
CALL_SECONDS = 10.0
CONNECT_SECONDS = 10.0
OPEN_SECONDS = 15.0
STOP_SECONDS = 3.0
_RPC_SECONDS = 5.0
_CACHED_KEYS = 1024
_STORED_KEYS = 20_000
_ANY_PORT = re.compile(r"/tcp/0(?=/|$)")
_PORT = re.compile(r"/tcp/(\d+)")


class SwarmUnavailable(Exception):
    """The peer-to-peer layer cannot be used now; the message says why. HTTP may still work."""


@dataclass(frozen=True)
class DaemonSettings:
    """Where the daemon listens, what it announces, whom it joins. Addresses are multiaddresses."""

    identity_path: str
    peer_id: str
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    bootstrap: tuple[str, ...]
    client_mode: bool

    def pinned(self, maddrs: Sequence[str]) -> "DaemonSettings":
        """The same with port 0 replaced by the port in use, taken from `maddrs` of its family."""
        return replace(self, listen=tuple(_pinned(entry, maddrs) for entry in self.listen))


class Daemon:
    """A running daemon and its node."""

    def __init__(self, p2p: Any, node: Any, maddrs: tuple[str, ...]) -> None:
        self._p2p = p2p
        self._node = node
        self.maddrs = maddrs
        self.pid: int = p2p._child.pid

    @classmethod
    async def start(
        cls, settings: DaemonSettings, *, validator: SignedRecordValidator, guard: RequestGuard
    ) -> "Daemon":
        """Start the daemon and join. Raises SwarmUnavailable with the reason."""
        p2p = await bounded(_start_p2p(settings), START_SECONDS + CALL_SECONDS, "libp2p daemon")
        try:
            if p2p.peer_id.to_base58() != settings.peer_id:
                raise SwarmUnavailable(
                    f"libp2p daemon: runs as {p2p.peer_id}, expected {settings.peer_id}"
                )
            node = await bounded(
                _start_node(p2p, settings, validator, guard), JOIN_SECONDS, "joining the swarm"
            )
        except BaseException:
            await _stop_p2p(p2p)
            raise
        return cls(p2p, node, await _maddrs(p2p))

    async def died(self) -> None:
        """Return when the daemon's process has ended, for whatever reason."""
        await self._p2p._child.wait()

    async def handle(self, protocol: str, handler: Callable[..., Awaitable[None]]) -> None:
        """Let `handler` (info, reader, writer) answer streams of `protocol`."""
        await bounded(
            self._p2p.add_binary_stream_handler(protocol, handler), CALL_SECONDS, "stream handler"
        )

    async def store(self, key: str, value: object, *, owner: str, expires_at: float) -> bool:
        """Store a record under `owner`'s subkey. True: some node has it, perhaps only this one."""
        stored = self._node.store(key, value, expires_at, subkey=owner)
        return bool(await bounded(stored, CALL_SECONDS, f"storing {key}"))

    async def find(self, key: str) -> dict[object, tuple[object, float]]:
        """What stands under `key`: subkey to (payload, expiry). As hostile as its owners."""
        found = await bounded(self._node.get(key, latest=True), CALL_SECONDS, f"looking up {key}")
        if found is None or not isinstance(found.value, dict):
            return {}
        return {
            subkey: (entry.value, entry.expiration_time) for subkey, entry in found.value.items()
        }

    async def rejoin(self, bootstrap: Sequence[str]) -> bool:
        """Meet the bootstrap peers again, in case a side forgot the other. True: one answered."""
        answered = False
        for peer, maddrs in by_peer(bootstrap).items():
            with contextlib.suppress(SwarmUnavailable):
                await self.connect(peer, maddrs)
                ping = self._node.protocol.call_ping(PeerID.from_base58(peer))
                answered |= await bounded(ping, CALL_SECONDS, f"ping of {peer}") is not None
        return answered

    async def connect(self, peer: str, maddrs: Sequence[str]) -> None:
        """Dial `peer` at `maddrs`; nothing happens if it is connected. Raises SwarmUnavailable."""
        await bounded(self._connect(peer, maddrs), CONNECT_SECONDS, f"dialling {peer}")

    def opener(self, peer: str, maddrs: Sequence[str], protocol: str) -> OpenStream:
        """What opens streams to `peer`, which may also be known by other ways than `maddrs`."""

        async def open_stream() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            if maddrs:
                with contextlib.suppress(SwarmUnavailable):
                    await self.connect(peer, maddrs)
            try:
                _, reader, writer = await bounded(
                    self._open(peer, protocol), OPEN_SECONDS, f"stream to {peer}"
                )
            except SwarmUnavailable as error:
                raise StreamRefused(str(error)) from error
            return reader, writer

        return open_stream

    async def stop(self) -> None:
        """End node and daemon, in bounded time, also if the daemon is dead or hangs."""
        refresh = self._node.cache_refresh_task
        if refresh is not None:
            refresh.cancel()
        if self._p2p._child.returncode is None:
            with contextlib.suppress(SwarmUnavailable):
                await bounded(self._node.shutdown(), STOP_SECONDS, "node shutdown")
        self._node.is_alive = False
        await _stop_p2p(self._p2p)

    async def _connect(self, peer: str, maddrs: Sequence[str]) -> None:
        addresses = [Multiaddr(maddr.rpartition("/p2p/")[0] or maddr) for maddr in maddrs]
        await self._p2p._client.connect(PeerID.from_base58(peer), addresses)

    async def _open(self, peer: str, protocol: str) -> Any:
        return await self._p2p.call_binary_stream_handler(PeerID.from_base58(peer), protocol)


def by_peer(peers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Peer id to addresses, of peer ids and of multiaddresses that end in /p2p/ID."""
    addresses: dict[str, tuple[str, ...]] = {}
    for entry in peers:
        maddr, _, peer = entry.rpartition("/p2p/")
        addresses[peer] = addresses.get(peer, ()) + ((entry,) if maddr else ())
    return addresses


async def bounded(awaitable: Awaitable[Any], seconds: float, what: str) -> Any:
    """The result of a call into hivemind, which may hang or raise anything."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except SwarmUnavailable:
        raise
    except TimeoutError as error:
        raise SwarmUnavailable(f"{what}: no answer in {seconds:.0f} s") from error
    except Exception as error:
        raise SwarmUnavailable(f"{what}: {error or type(error).__name__}") from error


class _TidyP2P(P2P):
    """Also removes the socket of a daemon that was killed or never came up."""

    def _terminate(self) -> None:
        super()._terminate()
        with contextlib.suppress(OSError, AttributeError):
            os.remove(self._daemon_listen_maddr["unix"])


async def _start_p2p(settings: DaemonSettings) -> Any:
    """TCP only, no relays and no port mapping: what others can dial is what the operator says."""
    return await _TidyP2P.create(
        identity_path=settings.identity_path,
        check_if_identity_free=False,
        host_maddrs=list(settings.listen) or None,
        no_listen=not settings.listen,
        announce_maddrs=list(settings.announce) or None,
        initial_peers=list(settings.bootstrap) or None,
        dht_mode="client" if settings.client_mode else "server",
        startup_timeout=START_SECONDS,
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        use_auto_relay=False,
    )


async def _start_node(
    p2p: Any, settings: DaemonSettings, validator: SignedRecordValidator, guard: RequestGuard
) -> Any:
    """A node that keeps its id over restarts and caches nothing: records are short-lived.

    Its storage is bounded by us, because hivemind bounds the cache only: what expires first goes.
    """
    node = await DHTNode.create(
        p2p=p2p,
        node_id=DHTID.generate(source=settings.peer_id),
        initial_peers=list(settings.bootstrap) or None,
        client_mode=settings.client_mode,
        wait_timeout=_RPC_SECONDS,
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_size=_CACHED_KEYS,
        cache_refresh_before_expiry=0,
        reuse_get_requests=False,
        record_validator=validator,
        authorizer=guard,
    )
    node.protocol.storage.maxsize = _STORED_KEYS
    return node


async def _stop_p2p(p2p: Any) -> None:
    with contextlib.suppress(SwarmUnavailable):
        await bounded(p2p.shutdown(), STOP_SECONDS, "daemon shutdown")
    if p2p._child.returncode is None:
        p2p._child.kill()
        await p2p._child.wait()
    tasks = [task for task in (p2p._listen_task, p2p._reader_task) if task is not None]
    await asyncio.gather(*tasks, return_exceptions=True)


async def _maddrs(p2p: Any) -> tuple[str, ...]:
    try:
        return tuple(str(maddr) for maddr in await p2p.get_visible_maddrs())
    except ValueError:
        return ()


def _pinned(entry: str, maddrs: Sequence[str]) -> str:
    family = "/".join(entry.split("/")[:2])
    ports = [
        found for maddr in maddrs if maddr.startswith(family) and (found := _PORT.search(maddr))
    ]
    return _ANY_PORT.sub(f"/tcp/{ports[0][1]}", entry) if ports else entry
