"""The libp2p daemon's process: how it is to run, how it is started, and how it ends for certain."""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P

from shared.identity import Identity, IdentityError

START_SECONDS = 60.0
STOP_SECONDS = 3.0
_ANY_PORT = re.compile(r"/tcp/0(?=/|$)")
_PORT = re.compile(r"/tcp/(\d+)")


class SwarmUnavailable(Exception):
    """The peer-to-peer layer cannot be used now; the message says why. HTTP may still work."""


@dataclass(frozen=True)
class DaemonSettings:
    """Where the daemon listens and what it announces. Addresses are multiaddresses."""

    identity_path: str
    peer_id: str
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    client_mode: bool

    def pinned(self, maddrs: Sequence[str]) -> "DaemonSettings":
        """The same with port 0 replaced by the port in use, taken from `maddrs` of its family."""
        return replace(self, listen=tuple(_pinned(entry, maddrs) for entry in self.listen))

    def appearing(self, *, announce: tuple[str, ...], client_mode: bool) -> "DaemonSettings":
        """The same for a daemon that others see differently."""
        return replace(self, announce=announce, client_mode=client_mode)


async def bounded(awaitable: Awaitable[Any], seconds: float, what: str) -> Any:
    """The result of a call into hivemind, which may hang or raise anything."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except SwarmUnavailable:
        raise
    except TimeoutError as error:
        raise SwarmUnavailable(f"{what}: no answer in {seconds:.0f} s") from error
    except Exception as error:
        raise SwarmUnavailable(f"{what}: {str(error) or type(error).__name__}") from error


def check_identity(settings: DaemonSettings) -> None:
    """A daemon replaces a missing key file by a key of another kind, so none is started then."""
    try:
        found = Identity.load(Path(settings.identity_path)).peer_id
    except IdentityError as error:
        raise SwarmUnavailable(f"libp2p daemon: {error}") from error
    if found != settings.peer_id:
        raise SwarmUnavailable(
            f"libp2p daemon: key file {settings.identity_path} is of {found}, "
            f"expected {settings.peer_id}"
        )


class _TidyP2P(P2P):
    """Also removes the socket of a daemon that was killed or never came up."""

    def _terminate(self) -> None:
        super()._terminate()
        with contextlib.suppress(OSError, AttributeError):
            os.remove(self._daemon_listen_maddr["unix"])


async def start_p2p(settings: DaemonSettings) -> Any:
    """TCP only, no relays and no port mapping: what others can dial is what the operator says."""
    begun: list[Any] = []

    class Begun(_TidyP2P):
        def __init__(self) -> None:
            super().__init__()
            begun.append(self)

    try:
        return await Begun.create(
            identity_path=settings.identity_path,
            check_if_identity_free=False,
            host_maddrs=list(settings.listen) or None,
            no_listen=not settings.listen,
            announce_maddrs=list(settings.announce) or None,
            dht_mode="client" if settings.client_mode else "server",
            startup_timeout=START_SECONDS,
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
            use_auto_relay=False,
        )
    except BaseException:
        for p2p in begun:
            _abandon(p2p)
        raise


def _abandon(p2p: Any) -> None:
    """End a daemon whose start failed or was given up: hivemind leaves its process behind."""
    p2p._terminate()
    if p2p._child is not None:
        if p2p._child.returncode is None:
            p2p._child.kill()
        p2p._child._transport.close()


async def stop_p2p(p2p: Any) -> None:
    with contextlib.suppress(SwarmUnavailable):
        await bounded(p2p.shutdown(), STOP_SECONDS, "daemon shutdown")
    if p2p._child.returncode is None:
        p2p._child.kill()
        await p2p._child.wait()
    if p2p._client is not None:
        control = p2p._client.control
        p2p._client.close()
        # What a dead daemon did to the control connection concerns nobody any more.
        await asyncio.gather(control._read_task, control._write_task, return_exceptions=True)
    tasks = [task for task in (p2p._listen_task, p2p._reader_task) if task is not None]
    await asyncio.gather(*tasks, return_exceptions=True)
    # asyncio closes a process's pipes only when it sees their end; a killed one may leave none.
    p2p._child._transport.close()


def _pinned(entry: str, maddrs: Sequence[str]) -> str:
    family = "/".join(entry.split("/")[:2])
    ports = [
        found for maddr in maddrs if maddr.startswith(family) and (found := _PORT.search(maddr))
    ]
    return _ANY_PORT.sub(f"/tcp/{ports[0][1]}", entry) if ports else entry
