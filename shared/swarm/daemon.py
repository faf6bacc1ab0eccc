"""One life of a libp2p daemon and its DHT node.

Calls into hivemind may hang for ever or raise anything, and it does not notice that its daemon
died. So every call is bounded here, every failure is a SwarmUnavailable, and `died` tells of a
death.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils.multiaddr import Multiaddr

from shared.exchange.streams import OpenStream, StreamRefused
from shared.swarm.guards import RequestGuard, SignedRecordValidator
from shared.swarm.process import (
    START_SECONDS,
    STOP_SECONDS,
    DaemonSettings,
    SwarmUnavailable,
    bounded,
    check_identity,
    start_p2p,
    stop_p2p,
)

CALL_SECONDS = 10.0
CONTROL_SECONDS = 10.0
CONNECT_SECONDS = 10.0
OPEN_SECONDS = 15.0
_RPC_SECONDS = 5.0
_CACHED_KEYS = 1024
_STORED_KEYS = 20_000


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
        """Start the daemon and a node that knows nobody. Raises SwarmUnavailable with the reason.

        Bootstrap peers are met later, one by one: a daemon that is given dead ones does not start.
        """
        check_identity(settings)
        p2p = await bounded(start_p2p(settings), START_SECONDS + CALL_SECONDS, "libp2p daemon")
        try:
            if p2p.peer_id.to_base58() != settings.peer_id:
                raise SwarmUnavailable(
                    f"libp2p daemon: runs as {p2p.peer_id}, expected {settings.peer_id}"
                )
            node = await bounded(
                _start_node(p2p, settings, validator, guard), CALL_SECONDS, "DHT node"
            )
        except BaseException:
            await stop_p2p(p2p)
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

    async def answers(self) -> bool:
        """Whether the daemon's process does as it is told: a stopped or wedged one does not."""
        try:
            await bounded(self._p2p._client.identify(), CONTROL_SECONDS, "libp2p daemon")
        except SwarmUnavailable:
            return False
        return True

    async def connected(self) -> frozenset[str]:
        """The peers to which a connection is open. Raises SwarmUnavailable."""
        found = await bounded(self._p2p.list_peers(), CONTROL_SECONDS, "connected peers")
        return frozenset(info.peer_id.to_base58() for info in found)

    async def ping(self, peer: str) -> bool:
        """Whether the DHT node of `peer` answers; each node knows of the other then.

        It counts as good again then: hivemind avoids a peer for longer with each failure.
        """
        who = PeerID.from_base58(peer)
        ping = self._node.protocol.call_ping(who)
        if await bounded(ping, CALL_SECONDS, f"ping of {peer}") is None:
            return False
        self._node.blacklist.register_success(who)
        return True

    async def look_around(self) -> None:
        """Learn who is near this node in the DHT, from those it knows. Raises SwarmUnavailable."""
        near = self._node.find_nearest_nodes([self._node.node_id])
        await bounded(near, CALL_SECONDS, "looking for neighbours")

    def kill(self) -> None:
        """End the daemon's process at once; `died` returns then."""
        with contextlib.suppress(ProcessLookupError):
            self._p2p._child.kill()

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
        await stop_p2p(self._p2p)

    async def _connect(self, peer: str, maddrs: Sequence[str]) -> None:
        addresses = [Multiaddr(maddr.rpartition("/p2p/")[0] or maddr) for maddr in maddrs]
        await self._p2p._client.connect(PeerID.from_base58(peer), addresses)

    async def _open(self, peer: str, protocol: str) -> Any:
        return await self._p2p.call_binary_stream_handler(PeerID.from_base58(peer), protocol)


async def _start_node(
    p2p: Any, settings: DaemonSettings, validator: SignedRecordValidator, guard: RequestGuard
) -> Any:
    """A node that keeps its id over restarts and caches nothing: records are short-lived.

    Its storage is bounded by us, because hivemind bounds the cache only: what expires first goes.
    """
    node = await DHTNode.create(
        p2p=p2p,
        node_id=DHTID.generate(source=settings.peer_id),
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


async def _maddrs(p2p: Any) -> tuple[str, ...]:
    try:
        return tuple(str(maddr) for maddr in await p2p.get_visible_maddrs())
    except ValueError:
        return ()
