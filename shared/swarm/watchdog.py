"""Keeps a libp2p daemon running: one that dies, hangs or is to run differently is started again.

hivemind notices none of it. A daemon that is killed leaves its node in place, and one that is
stopped or wedged takes every call and answers none.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence

from shared.clock import now
from shared.exchange.serving import BlobServer
from shared.exchange.streams import PROTOCOL, OpenStream, StreamRefused
from shared.retry import backoff_seconds
from shared.swarm.daemon import Daemon
from shared.swarm.guards import RequestGuard, SignedRecordValidator
from shared.swarm.process import DaemonSettings, SwarmUnavailable

log = logging.getLogger(__name__)

PROBE_SECONDS = 15.0
MAX_SILENCES = 2
"""Control calls in a row that the daemon leaves unanswered before it counts as hung."""

STABLE_SECONDS = 60.0
"""A daemon that dies sooner is started again after a pause, a longer one each time."""

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
CANCEL_SECONDS = 0.5


class Watchdog:
    """One daemon after the other, under the same key. `on_restart` is told of each but the first.

    `start` first; then `watch` and `probe` run beside each other until they are cancelled; `stop`.
    """

    def __init__(
        self,
        settings: DaemonSettings,
        validator: SignedRecordValidator,
        server: BlobServer,
        *,
        on_restart: Callable[[], None],
    ) -> None:
        self.settings = settings
        self._validator = validator
        self._server = server
        self._on_restart = on_restart
        self._daemon: Daemon | None = None
        self._started_at = 0.0
        self._early_deaths = 0
        self._shown: tuple[str, ...] = ()
        self.listening: tuple[str, ...] = ()
        """Where the daemon listens, with its real ports; empty if it has always been told what to
        announce instead."""
        self.healthy = False
        self.restarts = 0

    @property
    def daemon(self) -> Daemon | None:
        """The daemon, if it is up."""
        return self._daemon if self.healthy else None

    @property
    def maddrs(self) -> tuple[str, ...]:
        """What others are told to dial, each with /p2p/ID."""
        if self._shown or self._daemon is None:
            return self._shown
        return self._daemon.maddrs

    @property
    def pid(self) -> int | None:
        """The process id of the daemon, also of one that has just died."""
        return self._daemon.pid if self._daemon is not None else None

    async def start(self) -> None:
        """Raises SwarmUnavailable with the reason; nothing stays running."""
        await self._start(self.settings)

    def opener(self, peer: str, maddrs: Sequence[str]) -> OpenStream:
        """What opens streams to `peer` by the daemon that is up at that moment."""

        async def open_stream() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            if self.daemon is None:
                raise StreamRefused("our own libp2p daemon is being started again")
            return await self.daemon.opener(peer, maddrs, PROTOCOL)()

        return open_stream

    def rebuild(self, why: str) -> None:
        """End the daemon at once; `watch` starts it again with the same key and port."""
        log.warning("the libp2p daemon is started anew: %s", why)
        self.healthy = False
        if self._daemon is not None:
            self._daemon.kill()

    def appear(self, *, announce: Sequence[str], client_mode: bool) -> None:
        """Show others these multiaddresses, or be a client; rebuilds the daemon if it takes that.

        A node that goes by other addresses than its daemon knows would be found by nobody.
        """
        wanted = tuple(maddr.partition("/p2p/")[0] for maddr in announce)
        own = f"/p2p/{self.settings.peer_id}"
        known = self._daemon.maddrs if self._daemon is not None else ()
        self._shown = tuple(maddr + own for maddr in wanted)
        is_known = {*known}.issuperset(self._shown) or wanted == self.settings.announce
        if client_mode == self.settings.client_mode and is_known:
            return
        self.settings = self.settings.pinned(self.listening).appearing(
            announce=wanted or self.settings.announce, client_mode=client_mode
        )
        self.rebuild("to be a client that nobody dials" if client_mode else "to be dialled")

    async def watch(self) -> None:
        """Start the daemon again whenever it ends."""
        while self._daemon is not None:
            await self._daemon.died()
            self.healthy = False
            log.warning("the libp2p daemon ended; starting it again")
            await self._daemon.stop()
            await self._pause_if_it_dies_early()
            await self._restart()
            self.restarts += 1
            self._on_restart()

    async def probe(self) -> None:
        """End a daemon that no longer answers, so that `watch` starts it again."""
        silences = 0
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            daemon = self.daemon
            if daemon is None or await daemon.answers():
                silences = 0
                continue
            silences += 1
            if silences >= MAX_SILENCES and daemon is self.daemon:
                self.rebuild("it does not answer")
                silences = 0

    async def stop(self) -> None:
        """End the daemon, in bounded time. Cancel `watch` and `probe` before."""
        self.healthy = False
        if self._daemon is not None:
            await self._daemon.stop()
            self._daemon = None

    async def _start(self, settings: DaemonSettings) -> None:
        daemon = await Daemon.start(settings, validator=self._validator, guard=RequestGuard(now))
        try:
            await daemon.handle(PROTOCOL, self._server.serve)
        except BaseException:
            await daemon.stop()
            raise
        if not settings.announce and daemon.maddrs != self.listening:
            self.listening, self._shown = daemon.maddrs, ()
        self._daemon, self.healthy = daemon, True
        self._started_at = asyncio.get_running_loop().time()

    async def _pause_if_it_dies_early(self) -> None:
        lived = asyncio.get_running_loop().time() - self._started_at
        self._early_deaths = self._early_deaths + 1 if lived < STABLE_SECONDS else 0
        if self._early_deaths > 1:
            await asyncio.sleep(_backoff(self._early_deaths - 2))

    async def _restart(self) -> None:
        """Try until it works: first with the old port, then, in case it is taken, with any."""
        attempt, up = 0, False
        while not up:
            settings = self.settings
            try:
                await self._start(settings if attempt % 3 == 2 else settings.pinned(self.listening))
            except SwarmUnavailable as error:
                log.warning("the libp2p daemon does not start: %s", error)
                await asyncio.sleep(_backoff(attempt))
                attempt += 1
            else:
                up = True
                if settings is not self.settings:
                    self.rebuild("it was told meanwhile to run differently")


async def forever(doing: Callable[[], Awaitable[None]]) -> None:
    """Run what a peer lives on: a mistake in it is told and does not end it."""
    while True:
        try:
            await doing()
        except Exception:
            log.exception("a task of the peer failed; it is started again")
        await asyncio.sleep(1.0)


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and return when they have ended.

    Asked again and again: a wait in Python 3.11 that is over at that very moment forgets about it.
    """
    running = {*tasks}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_SECONDS)


def _backoff(attempt: int) -> float:
    return backoff_seconds(
        attempt, base=BACKOFF_SECONDS, cap=MAX_BACKOFF_SECONDS, random=random.random()
    )
