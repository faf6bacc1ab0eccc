"""A peer of the swarm: announces what it has, finds who has what, fetches and serves blobs.

Records and blobs are only pointers and bytes here: who owns which digest is the ledger's to say. A
peer outlives its libp2p daemon: when that dies it is started again with the same key and port, and
everything that was announced is announced again.
"""

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from protocol.records import TTL_SECONDS, HeadRecord, ProviderRecord, head_key, provider_key
from protocol.values import Value
from shared.blobstore import BlobMissing, BlobStore
from shared.clock import now
from shared.identity import Identity
from shared.swarm.daemon import Daemon, DaemonSettings, by_peer
from shared.swarm.daemon import SwarmUnavailable as SwarmUnavailable
from shared.swarm.guards import RequestGuard, SignedRecordValidator, prepare_hivemind
from shared.swarm.streams import PROTOCOL, BlobServer, StreamRefused, WrongBytes, fetch_from
from shared.swarm.streams import MayRead as MayRead

log = logging.getLogger(__name__)

REPUBLISH_SECONDS = TTL_SECONDS / 3
REJOIN_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 30.0
MAX_PROVIDERS = 16
"""Providers from the DHT that one fetch tries."""

_MAX_DROPPED = 1024
_MAX_RECORD_MADDRS = 4

Record = TypeVar("Record", bound=Value)


class FetchFailed(Exception):
    """No provider gave the blob; `reason` says what each of them did."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Peer:
    """One participant of the swarm. Make it with `start`, end it with `stop`."""

    def __init__(
        self, settings: DaemonSettings, validator: SignedRecordValidator, server: BlobServer
    ) -> None:
        self._settings = settings
        self._validator = validator
        self._server = server
        self._daemon: Daemon | None = None
        self._published: dict[str, Value] = {}
        self._dropped: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._republish = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.peer_id = settings.peer_id
        self.maddrs: tuple[str, ...] = ()
        self.healthy = False
        self.restarts = 0

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
        store: BlobStore,
        may_read: MayRead,
        client_mode: bool = False,
    ) -> "Peer":
        """Start a peer that serves `store` to whom `may_read` allows.

        `listen` are multiaddresses, where port 0 means any; `announce` those that others should
        dial, with their ports, by default where it listens; `bootstrap` full ones, ending in
        /p2p/ID, none for the first peer of a swarm. `client_mode`: nobody can dial this peer, so it
        stores nothing for others. Raises SwarmUnavailable with the reason; nothing stays running.
        """
        prepare_hivemind()
        settings = DaemonSettings(
            identity_path=str(identity.path),
            peer_id=identity.peer_id,
            listen=tuple(listen),
            announce=tuple(announce),
            bootstrap=tuple(bootstrap),
            client_mode=client_mode,
        )
        validator = SignedRecordValidator(
            identity, certificate, coordinator=coordinator, run=run, now=now
        )
        peer = cls(settings, validator, BlobServer(store, may_read))
        await peer._start_daemon(settings)
        peer._tasks = [asyncio.create_task(peer._watch()), asyncio.create_task(peer._maintain())]
        return peer

    @property
    def daemon_pid(self) -> int | None:
        """The process id of the libp2p daemon, None while there is none."""
        return self._daemon.pid if self._daemon else None

    async def announce_blob(self, ref: BlobRef) -> bool:
        """Say that this peer has the blob, now and until `forget`. True: the record is stored."""
        self._published[provider_key(ref.digest)] = ProviderRecord(m=(), n=ref.size)
        return await self._publish(provider_key(ref.digest))

    async def announce_head(self, assignment: str, record: HeadRecord) -> bool:
        """Say which checkpoint is this peer's newest, now and until `forget`."""
        self._published[head_key(assignment)] = record
        return await self._publish(head_key(assignment))

    def forget(self, key: str) -> None:
        """Stop publishing under `key` (of `protocol.records`); what is stored expires."""
        self._published.pop(key, None)

    async def providers(self, digest: str) -> list[tuple[str, ProviderRecord]]:
        """Who says to have the blob, by peer id. Empty too if the DHT cannot be asked."""
        return list((await self._records(provider_key(digest), ProviderRecord)).items())

    async def head(self, assignment: str, worker: str) -> HeadRecord | None:
        """The newest checkpoint that `worker` announced for the assignment."""
        return (await self._records(head_key(assignment), HeadRecord)).get(worker)

    async def fetch_blob(
        self, ref: BlobRef, store: BlobStore, *, providers: Sequence[str] = ()
    ) -> str:
        """Fetch the blob into `store` and return the peer id of who completed it.

        Tries `providers` first, peer ids or full multiaddresses, then those in the DHT, each once;
        a failed one's verified pieces are kept. A peer that sent wrong bytes is not asked for this
        blob again. Raises FetchFailed with every reason, OSError if this machine's disk fails.
        """
        if store.has(ref.digest):
            return self.peer_id
        failures: list[str] = []
        tried = {self.peer_id}
        for given in (by_peer(providers), None):
            found = given if given is not None else await self._found(ref.digest)
            for peer, maddrs in found.items():
                if peer in tried or (ref.digest, peer) in self._dropped:
                    continue
                tried.add(peer)
                try:
                    await self._fetch_from(peer, maddrs, ref, store)
                except (StreamRefused, BlobMissing) as error:
                    failures.append(f"{peer}: {error}")
                else:
                    return peer
        raise FetchFailed(f"blob {ref.digest}: {'; '.join(failures) or 'no providers'}")

    def renew_certificate(self, certificate: SignedCertificate) -> None:
        """Sign records with `certificate` from now on."""
        self._validator.certificate = certificate
        self._republish.set()

    async def stop(self) -> None:
        """End the daemon and all tasks, in bounded time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.healthy = False
        if self._daemon is not None:
            await self._daemon.stop()
            self._daemon = None

    async def _start_daemon(self, settings: DaemonSettings) -> None:
        daemon = await Daemon.start(settings, validator=self._validator, guard=RequestGuard(now))
        try:
            await daemon.handle(PROTOCOL, self._server.serve)
        except SwarmUnavailable:
            await daemon.stop()
            raise
        self._daemon, self.maddrs, self.healthy = daemon, daemon.maddrs, True

    async def _watch(self) -> None:
        """Start the daemon again whenever it dies."""
        while self._daemon is not None:
            await self._daemon.died()
            self.healthy = False
            log.warning("the libp2p daemon died; starting it again")
            await self._daemon.stop()
            await self._restart()
            self.restarts += 1
            self._republish.set()

    async def _restart(self) -> None:
        """Try until it works: first with the old port, then, in case it is taken, with any."""
        pinned = self._settings.pinned(self.maddrs)
        attempt = 0
        while not self.healthy:
            try:
                await self._start_daemon(self._settings if attempt % 3 == 2 else pinned)
            except SwarmUnavailable as error:
                log.warning("the libp2p daemon does not start: %s", error)
                await asyncio.sleep(min(MAX_BACKOFF_SECONDS, 0.5 * 2**attempt))
                attempt += 1

    async def _maintain(self) -> None:
        """Publish again in time, and meet the bootstrap peers again in case they started anew."""
        publish_at = now() + REPUBLISH_SECONDS * random.uniform(0.8, 1.2)
        while True:
            with contextlib.suppress(TimeoutError):
                pause = min(publish_at - now(), REJOIN_SECONDS * random.uniform(0.8, 1.2))
                await asyncio.wait_for(self._republish.wait(), max(0.0, pause))
            if self._daemon is not None and self.healthy:
                await self._daemon.rejoin(self._settings.bootstrap)
            if self._republish.is_set() or now() >= publish_at:
                self._republish.clear()
                publish_at = now() + REPUBLISH_SECONDS * random.uniform(0.8, 1.2)
                for key in tuple(self._published):
                    await self._publish(key)

    async def _publish(self, key: str) -> bool:
        record = self._published.get(key)
        if record is None or self._daemon is None or not self.healthy:
            return False
        if isinstance(record, ProviderRecord):
            record = ProviderRecord(m=self.maddrs[:_MAX_RECORD_MADDRS], n=record.n)
        expires_at = self._validator.certificate.certificate.expires_at
        try:
            return await self._daemon.store(
                key,
                record.model_dump(mode="json"),
                owner=self.peer_id,
                expires_at=min(now() + TTL_SECONDS, float(expires_at)),
            )
        except SwarmUnavailable as error:
            log.warning("announcement failed: %s", error)
            return False

    async def _records(self, key: str, kind: type[Record]) -> dict[str, Record]:
        """Owner to record, whatever is well formed and has not expired."""
        if self._daemon is None or not self.healthy:
            return {}
        try:
            found = await self._daemon.find(key)
        except SwarmUnavailable as error:
            log.warning("look-up failed: %s", error)
            return {}
        records: dict[str, Record] = {}
        for owner, (payload, expires_at) in found.items():
            if isinstance(owner, str) and expires_at > now():
                with contextlib.suppress(ValidationError):
                    records[owner] = kind.model_validate(payload)
        return records

    async def _found(self, digest: str) -> dict[str, tuple[str, ...]]:
        """Providers from the DHT and where to dial them, in random order to spread the load."""
        found = [(peer, record.m) for peer, record in await self.providers(digest)]
        random.shuffle(found)
        return dict(found[:MAX_PROVIDERS])

    async def _fetch_from(
        self, peer: str, maddrs: Sequence[str], ref: BlobRef, store: BlobStore
    ) -> None:
        if self._daemon is None or not self.healthy:
            raise StreamRefused("our own libp2p daemon is being started again")
        try:
            await fetch_from(self._daemon.opener(peer, maddrs, PROTOCOL), ref, store)
        except WrongBytes:
            self._dropped[ref.digest, peer] = None
            if len(self._dropped) > _MAX_DROPPED:
                self._dropped.popitem(last=False)
            raise
