"""How a peer stays part of the swarm: it meets its bootstrap peers, and meets them again.

None of them has to be there. Those that are silent are tried again after growing pauses, those that
answer once a minute, because either side may have started anew and forgotten the other. A port is
tried by plain TCP first: libp2p punishes failed dials with pauses of minutes.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from protocol.ids import PeerId
from shared.maddrs import NotTcp, tcp_address
from shared.retry import backoff_seconds
from shared.swarm.daemon import Daemon
from shared.swarm.process import SwarmUnavailable

log = logging.getLogger(__name__)

REJOIN_SECONDS = 60.0
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0
PORT_SECONDS = 3.0
SILENT_SHARE = 0.1

_PEER_ID: TypeAdapter[str] = TypeAdapter(PeerId)


class Joining:
    """Whom a peer joins, and how that goes."""

    def __init__(self, bootstrap: Sequence[str], *, own: str, coordinator: str) -> None:
        self._own = own
        self._coordinator = coordinator
        self._silent: set[str] = set()
        self._peers = by_peer(bootstrap)
        self._failures = 0
        self._wake = asyncio.Event()
        self.met = asyncio.Event()
        """Set when a bootstrap peer has answered for the first time, or none has."""
        self.answered = False
        """A bootstrap peer answered at the last attempt."""
        self.open = False
        """At the last attempt, the port of some bootstrap peer took a connection."""

    def set_bootstrap(self, bootstrap: Sequence[str]) -> None:
        """Join these from now on; what is new is tried at once."""
        peers = by_peer(bootstrap)
        if peers != self._peers:
            self._peers = peers
            self.hurry()

    def hurry(self) -> None:
        """Try again now: something has changed."""
        self._failures = 0
        self._wake.set()

    async def attempt(self, daemon: Daemon) -> None:
        """Meet the bootstrap peers. The first that answers shows this node its neighbours.

        While one answers, those that did not are left alone most of the time, the coordinator
        excepted: an address may have become that of a stranger's computer.
        """
        self._wake.clear()
        peers = {peer: maddrs for peer, maddrs in self._peers.items() if self._is_due(peer)}
        met: list[str] = []
        try:
            connected = await daemon.connected()
            self.open = False
            async with asyncio.TaskGroup() as group:
                for peer, maddrs in peers.items():
                    there = peer in connected
                    group.create_task(self._meet(daemon, peer, maddrs, there=there, met=met))
        except SwarmUnavailable as error:
            log.debug("the swarm was not joined: %s", error)
        if self.answered and not met and peers:
            log.warning("no bootstrap peer answers any more; trying again and again")
        self._silent = (self._silent | peers.keys()) - {*met}
        self.answered = bool(met)
        self._failures = 0 if met or not peers else self._failures + 1
        self.met.set()

    async def pause(self) -> None:
        """Return when it is time for the next attempt."""
        if self._failures:
            seconds = backoff_seconds(
                self._failures - 1,
                base=BACKOFF_SECONDS,
                cap=MAX_BACKOFF_SECONDS,
                random=random.random(),
            )
        else:
            seconds = REJOIN_SECONDS * random.uniform(0.8, 1.2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _is_due(self, peer: str) -> bool:
        left_alone = self.answered and peer in self._silent and peer != self._coordinator
        return peer != self._own and (not left_alone or random.random() < SILENT_SHARE)

    async def _meet(
        self, daemon: Daemon, peer: str, maddrs: Sequence[str], *, there: bool, met: list[str]
    ) -> None:
        if not there and maddrs and not await _any_opens(maddrs):
            return
        self.open = True
        try:
            await daemon.connect(peer, maddrs)
            if not await daemon.ping(peer):
                return
            met.append(peer)
            if len(met) == 1:
                await daemon.look_around()
                self.met.set()
        except SwarmUnavailable as error:
            log.debug("bootstrap peer %s: %s", peer, error)


def by_peer(peers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Peer id to addresses, of peer ids and of multiaddresses that end in /p2p/ID.

    What names no peer of this software is left out: libp2p could not know whom it speaks to.
    """
    addresses: dict[str, tuple[str, ...]] = {}
    for entry in peers:
        maddr, _, peer = entry.rpartition("/p2p/")
        try:
            _PEER_ID.validate_python(peer)
        except ValidationError:
            log.warning(
                "bootstrap peer %.300r: expected a multiaddress that ends in /p2p/ID", entry
            )
            continue
        addresses[peer] = addresses.get(peer, ()) + ((entry,) if maddr else ())
    return addresses


async def _any_opens(maddrs: Sequence[str]) -> bool:
    return any(await asyncio.gather(*(_opens(maddr) for maddr in maddrs)))


async def _opens(maddr: str) -> bool:
    try:
        address = tcp_address(maddr)
        async with asyncio.timeout(PORT_SECONDS):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except NotTcp:
        return True
    except (OSError, ValueError):
        return False
    writer.close()
    return True
