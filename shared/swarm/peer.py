"""A peer of the swarm: announces what it has, finds who has what, opens and answers streams.

Records are only pointers here: who owns which digest is the ledger's to say. A peer outlives
whatever happens to the network: with no bootstrap peer in reach it goes on trying, and when its
libp2p daemon dies or hangs, that is started again with the same key and port, and everything that
was announced is announced again.
"""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Sequence
from weakref import WeakValueDictionary

from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from protocol.records import (
    BEACON_SECONDS,
    BEACON_TTL_SECONDS,
    MAX_KEYS_OF_COORDINATOR,
    MAX_KEYS_PER_OWNER,
    TTL_SECONDS,
    BeaconRecord,
    HeadRecord,
    ProviderRecord,
    beacon_key,
    head_key,
    provider_key,
)
from shared.clock import now
from shared.exchange.serving import BlobServer
from shared.exchange.streams import OpenStream
from shared.identity import Identity
from shared.retry import backoff_seconds
from shared.swarm.announcements import Announcements, Record, believable
from shared.swarm.guards import SignedRecordValidator, prepare_hivemind
from shared.swarm.joining import Joining
from shared.swarm.process import DaemonSettings
from shared.swarm.process import SwarmUnavailable as SwarmUnavailable
from shared.swarm.watchdog import Watchdog, end, forever

log = logging.getLogger(__name__)

REPUBLISH_SECONDS = TTL_SECONDS / 3
RETRY_SECONDS = 2.0
FIRST_JOIN_SECONDS = 5.0


class Peer:
    """One participant of the swarm. Make it with `start`, end it with `stop`."""

    def __init__(
        self,
        settings: DaemonSettings,
        validator: SignedRecordValidator,
        server: BlobServer,
        *,
        bootstrap: Sequence[str],
    ) -> None:
        self.peer_id = settings.peer_id
        self._validator = validator
        self._is_coordinator = self.peer_id == validator.coordinator
        # One key of the coordinator's is its beacon's.
        limit = MAX_KEYS_OF_COORDINATOR - 1 if self._is_coordinator else MAX_KEYS_PER_OWNER
        self._announcements = Announcements(max_keys=limit)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._republish = asyncio.Event()
        self._failed = asyncio.Event()
        self._round: asyncio.Task[None] | None = None
        self._joining = Joining(bootstrap, own=self.peer_id, coordinator=validator.coordinator)
        self._watchdog = Watchdog(settings, validator, server, on_restart=self._come_back)
        self._beacon_key = beacon_key(validator.run)
        self._beacon: BeaconRecord | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(  # noqa: PLR0913 - the two sides differ in these and nothing else
        cls,
        *,
        identity: Identity,
        certificate: SignedCertificate,
        coordinator: str,
        run: str,
        listen: Sequence[str],
        announce: Sequence[str] = (),
        bootstrap: Sequence[str],
        server: BlobServer,
        client_mode: bool = False,
    ) -> "Peer":
        """Start a peer whose incoming streams `server` answers.

        `listen` are multiaddresses, where port 0 means any; `announce` those that others should
        dial, with their ports, by default where it listens; `bootstrap` full ones, ending in
        /p2p/ID, none for the first peer of a swarm. `client_mode`: nobody can dial this peer, so it
        stores nothing for others. A bootstrap peer that is away is joined when it comes. Raises
        SwarmUnavailable if the daemon does not start, with the reason; nothing stays running then,
        nor if the start is cancelled.
        """
        prepare_hivemind()
        settings = DaemonSettings(
            identity_path=str(identity.path),
            peer_id=identity.peer_id,
            listen=tuple(listen),
            announce=tuple(announce),
            client_mode=client_mode,
        )
        validator = SignedRecordValidator(
            identity, certificate, coordinator=coordinator, run=run, now=now
        )
        peer = cls(settings, validator, server, bootstrap=bootstrap)
        await peer._watchdog.start()
        dog = peer._watchdog
        lives = (dog.watch, dog.probe, peer._keep_joined, peer._keep_announced, peer._keep_trying)
        peer._tasks = [asyncio.create_task(forever(life)) for life in lives]
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(peer._joining.met.wait(), FIRST_JOIN_SECONDS)
        except BaseException:
            await peer.stop()
            raise
        return peer

    @property
    def healthy(self) -> bool:
        """The daemon is up, as far as we know. Whether the swarm is in reach is `joined`."""
        return self._watchdog.healthy

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where others can dial this peer, as far as it knows itself."""
        return self._watchdog.maddrs

    @property
    def listening(self) -> tuple[str, ...]:
        """Where it listens, with real ports; none if told from the start what to announce."""
        return self._watchdog.listening

    @property
    def restarts(self) -> int:
        """How often the daemon was started again."""
        return self._watchdog.restarts

    @property
    def daemon_pid(self) -> int | None:
        """The process id of the libp2p daemon, None while there is none."""
        return self._watchdog.pid

    @property
    def client_mode(self) -> bool:
        """Whether this peer takes part as one that nobody can dial."""
        return self._watchdog.settings.client_mode

    @property
    def joined(self) -> bool:
        """A bootstrap peer answered lately, and the coordinator's beacon is read in this DHT."""
        return self.healthy and (self._is_coordinator or (self._joining.answered and self.lit))

    @property
    def lit(self) -> bool:
        """The beacon that was read last is not old."""
        return self._beacon is not None and now() - self._beacon.t <= BEACON_TTL_SECONDS

    @property
    def open(self) -> bool:
        """Plain TCP led to some bootstrap peer lately, whatever libp2p made of it."""
        return self._joining.open

    def set_bootstrap(self, maddrs: Sequence[str]) -> None:
        """Join these peers from now on; the connections to others stay."""
        self._joining.set_bootstrap(maddrs)

    def rejoin(self) -> None:
        """Meet the bootstrap peers now, and then announce everything again."""
        self._joining.answered = False
        self._joining.hurry()

    def rebuild(self, why: str) -> None:
        """End the daemon; it is started again at once, with the same key and port."""
        self._watchdog.rebuild(why)

    def appear(self, *, announce: Sequence[str], client_mode: bool) -> None:
        """Let others dial `announce`, or nobody dial this peer; by a rebuild if it takes one."""
        self._watchdog.appear(announce=announce, client_mode=client_mode)

    async def announce_blob(self, ref: BlobRef) -> bool:
        """Say that this peer has the blob, now and until `forget`. True: the record is stored."""
        self._announcements.put(provider_key(ref.digest), ProviderRecord(m=(), n=ref.size))
        return await self._publish(provider_key(ref.digest))

    async def announce_head(self, assignment: str, record: HeadRecord) -> bool:
        """Say which checkpoint is this peer's newest, now and until `forget`."""
        self._announcements.put(head_key(assignment), record)
        return await self._publish(head_key(assignment))

    async def announce_beacon(self) -> bool:
        """Of the coordinator: show that this DHT is its own, from now on until `stop`."""
        self._tasks.append(asyncio.create_task(forever(self._keep_beacon)))
        return await self._publish_beacon()

    def forget(self, key: str) -> None:
        """Stop publishing under `key` (of `protocol.records`); what is stored expires."""
        self._announcements.drop(key)

    async def providers(self, digest: str) -> list[tuple[str, ProviderRecord]]:
        """Who says to have the blob, by peer id. Empty too if the DHT cannot be asked."""
        return list((await self._records(provider_key(digest), ProviderRecord)).items())

    async def head(self, assignment: str, worker: str) -> HeadRecord | None:
        """The newest checkpoint that `worker` announced for the assignment."""
        return (await self._records(head_key(assignment), HeadRecord)).get(worker)

    async def beacon(self) -> BeaconRecord | None:
        """The coordinator's last sign of life in this DHT; None: there is none, or an old one."""
        found = await self._records(self._beacon_key, BeaconRecord)
        self._beacon = found.get(self._validator.coordinator)
        return self._beacon if self.lit else None

    def opener(self, peer: str, maddrs: Sequence[str] = ()) -> OpenStream:
        """What opens streams to `peer`, which may also be known by other ways than `maddrs`.

        It raises StreamRefused if that cannot be done in time, or while our daemon is down.
        """
        return self._watchdog.opener(peer, maddrs)

    def renew_certificate(self, certificate: SignedCertificate) -> None:
        """Sign records with `certificate` from now on."""
        self._validator.certificate = certificate
        self._republish.set()

    async def stop(self) -> None:
        """End the daemon and all tasks, in bounded time."""
        await end(self._tasks)
        await self._watchdog.stop()

    def _come_back(self) -> None:
        """The daemon is new, and its node knows nobody. Calls to the old one lead nowhere."""
        if self._round is not None:
            self._round.cancel()
        self._republish.set()
        self.rejoin()

    async def _keep_joined(self) -> None:
        while True:
            daemon = self._watchdog.daemon
            if daemon is not None:
                before = self._joining.answered
                await self._joining.attempt(daemon)
                if daemon is not self._watchdog.daemon:
                    self._joining.answered = False
                elif self._joining.answered and not before:
                    self._republish.set()
                if not self._is_coordinator:
                    await self.beacon()
            await self._joining.pause()

    async def _keep_announced(self) -> None:
        """Publish again in time, and at once to a swarm that did not hear it yet."""
        while True:
            with contextlib.suppress(TimeoutError):
                seconds = REPUBLISH_SECONDS * random.uniform(0.8, 1.2)
                await asyncio.wait_for(self._republish.wait(), seconds)
            self._republish.clear()
            self._round = asyncio.create_task(self._publish_all())
            try:
                await asyncio.wait({self._round})
            finally:
                self._round.cancel()

    async def _publish_all(self) -> None:
        for key in self._announcements.keys:
            await self._publish(key)

    async def _keep_trying(self) -> None:
        """Meet the swarm again after a store that failed, and then announce everything again.

        Soon, and after growing pauses: a node that lost its neighbours stores with itself alone.
        """
        attempt, failed_at = 0, -math.inf
        while True:
            await self._failed.wait()
            before, failed_at = failed_at, asyncio.get_running_loop().time()
            attempt = attempt + 1 if failed_at - before < 2 * REPUBLISH_SECONDS else 0
            await asyncio.sleep(
                backoff_seconds(
                    attempt, base=RETRY_SECONDS, cap=REPUBLISH_SECONDS, random=random.random()
                )
            )
            self._failed.clear()
            self._republish.set()
            self.rejoin()

    async def _keep_beacon(self) -> None:
        while True:
            await asyncio.sleep(BEACON_SECONDS)
            await self._publish_beacon()

    async def _publish(self, key: str) -> bool:
        # One after the other: of two at once, the one that expires first would be refused.
        async with self._turns.setdefault(key, asyncio.Lock()):
            payload = self._announcements.payload(key, () if self.client_mode else self.maddrs)
            if payload is None:
                return False
            stored = await self._store(key, payload, seconds=TTL_SECONDS)
        if not stored:
            self._failed.set()
        return stored

    async def _publish_beacon(self) -> bool:
        payload = BeaconRecord(t=int(now())).model_dump(mode="json")
        return await self._store(self._beacon_key, payload, seconds=BEACON_TTL_SECONDS)

    async def _store(self, key: str, payload: object, *, seconds: float) -> bool:
        daemon = self._watchdog.daemon
        if daemon is None:
            return False
        expires_at = min(now() + seconds, float(self._validator.certificate.certificate.expires_at))
        try:
            return await daemon.store(key, payload, owner=self.peer_id, expires_at=expires_at)
        except SwarmUnavailable as error:
            log.warning("announcement failed: %s", error)
            return False

    async def _records(self, key: str, kind: type[Record]) -> dict[str, Record]:
        """Owner to record, whatever is well formed and has not expired."""
        daemon = self._watchdog.daemon
        if daemon is None:
            return {}
        try:
            found = await daemon.find(key)
        except SwarmUnavailable as error:
            log.warning("look-up failed: %s", error)
            return {}
        return believable(found, kind, now=now())
