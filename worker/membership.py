"""A worker's place in the swarm: its registration, its peer, and the blobs it has and owes.

Training never depends on any of it: the DHT may be down (HTTP serves), the coordinator may be away
(calls are repeated), the token may have expired (we register again).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.certificates import SignedCertificate
from protocol.errors import ErrorCode
from protocol.messages import HeartbeatAnswer, RegisterAnswer, RunInfo, WorkerHeartbeat
from protocol.records import HeadRecord, provider_key
from shared.http_blobs import TransferFailed, check_same_host, upload_over_http
from shared.logs import facts
from shared.swarm.peer import Peer, SwarmUnavailable
from worker.client import CoordinatorClient
from worker.contact import first_contact, persist
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.receipts import Receipts
from worker.screen import Screen
from worker.settings import JoinSettings
from worker.tasks import log_failure
from worker.transfers import fetch_blob

log = logging.getLogger(__name__)

Result = TypeVar("Result")

PEER_RETRY_SECONDS = 30.0

MAX_CACHED = 64
"""Inputs that a request for work names as held here."""

LOST_TOKEN = frozenset({ErrorCode.UNKNOWN_TOKEN, ErrorCode.EXPIRED_TOKEN})


class Membership:
    """Registered at one coordinator. `find_coordinator` and `register` before use, `stop` after.

    `leaves_at` is the event loop's time at which the volunteer wants the machine back, None: never.
    """

    capability: Capability
    """What this machine offers now; set by `register`, renewed by the agent."""

    receipts: Receipts
    """What the coordinator signed for our work; there from `find_coordinator` on."""

    def __init__(
        self,
        settings: JoinSettings,
        folder: WorkerFolder,
        screen: Screen,
        *,
        leaves_at: float | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.screen = screen
        self.leaves_at = leaves_at
        self.client = CoordinatorClient(settings.url, folder.identity)
        self.peer: Peer | None = None
        self.heartbeat_seconds = 10.0
        self.durable: set[str] = set()
        self._info: RunInfo | None = None
        self._public: set[str] = set()
        self._inputs: dict[str, None] = {}
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._registering = asyncio.Lock()

    @property
    def info(self) -> RunInfo:
        """What the coordinator said of its run."""
        assert self._info is not None, "find_coordinator first"
        return self._info

    async def find_coordinator(self) -> RunInfo:
        """Learns who answers at the address, and that it is who answered there before.

        Raises CoordinatorUnreachable, Refused or NotTheSameCoordinator.
        """
        say = self.screen.say
        self._info = await first_contact(self.client, say=say)
        self.folder.pin_coordinator(self.settings.url, self.info.coordinator)
        self.receipts = Receipts(
            self.folder.receipts(self.info.coordinator),
            coordinator=self.info.coordinator,
            run=self.info.run,
            worker=self.folder.identity.peer_id,
            say=say,
        )
        return self._info

    async def register(self, capability: Capability) -> RegisterAnswer:
        """Registers, however busy the coordinator is. Raises CoordinatorUnreachable or Refused."""
        self.capability = capability
        return await persist(self._register, say=self.screen.say)

    async def join_swarm(self) -> None:
        """Joins the DHT, now or as soon as it can be reached."""
        if not self.settings.http_only:
            await self._start_peer()
            self._run(self._keep_peer())

    async def stop(self) -> None:
        """Leaves: stops transfers, the peer and the connections."""
        tasks = [*self._uploads.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.peer is not None:
            await self.peer.stop()
        await self.client.close()

    async def call(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Makes a call, registering again if the coordinator no longer knows our token."""
        token = self.client.token
        try:
            return await request()
        except CoordinatorUnreachable as error:
            if not isinstance(error, CoordinatorBusy):
                self.receipts.doubt()
            raise
        except Refused as refusal:
            if refusal.code not in LOST_TOKEN:
                raise
            log.info("registering again: %s", refusal)
        async with self._registering:
            # A registration voids the token before it: one is enough for all calls that wait.
            if self.client.token == token:
                await self._register()
        return await request()

    async def beat(self) -> HeartbeatAnswer:
        """The heartbeat of a worker that has no assignment."""
        after = self.receipts.after
        beat = WorkerHeartbeat(
            capability=self.offered_capability(), maddrs=self._maddrs(), receipts_after=after
        )
        answer = await self.call(lambda: self.client.heartbeat(beat))
        self.heed(answer, receipts_after=after)
        return answer

    def heed(self, answer: HeartbeatAnswer, *, receipts_after: int) -> None:
        """Does what the answer to a heartbeat with `receipts_after` asks for."""
        self.receipts.take(answer.receipts, after=receipts_after)
        self.heartbeat_seconds = answer.next_heartbeat_seconds
        self.durable.update(answer.durable)
        if answer.certificate is not None:
            self._hold(answer.certificate)
        for ref in answer.wanted:
            if ref.digest not in self._uploads and self.folder.blobs.has(ref.digest):
                self._uploads[ref.digest] = asyncio.create_task(self._upload(ref))

    def offered_capability(self) -> Capability:
        """What this machine offers now, and for how much longer."""
        if self.leaves_at is None:
            return self.capability
        left = max(0.0, self.leaves_at - asyncio.get_running_loop().time())
        return self.capability.model_copy(update={"available_seconds": left})

    def cached(self) -> tuple[str, ...]:
        """Digests of shards and of parents' weights that lie here, those used last first."""
        held = [digest for digest in reversed(self._inputs) if self.folder.blobs.has(digest)]
        return tuple(held[:MAX_CACHED])

    async def fetch_input(self, ref: BlobRef, *, public: bool) -> Path:
        """Brings what training starts from, as `fetch` does, and remembers that it is here."""
        await self.fetch(ref, public=public)
        self._inputs.pop(ref.digest, None)
        self._inputs[ref.digest] = None
        return self.folder.blobs.path(ref.digest)

    async def fetch(self, ref: BlobRef, *, public: bool) -> str:
        """Brings a blob into the worker's store; returns the route that it took.

        `public` blobs are served on to other peers. Raises CoordinatorUnreachable if no route
        works.
        """
        if public:
            self._public.add(ref.digest)
        route = "kept"
        if not self.folder.blobs.has(ref.digest):
            route = await fetch_blob(
                ref,
                self.client,
                self.folder.blobs,
                peer=self.peer,
                coordinator=self.info.coordinator,
            )
            log.info("fetched %s", facts(digest=ref.digest, bytes=ref.size, route=route))
        if public:
            self.publish([ref])
        return route

    def publish(
        self, refs: Sequence[BlobRef], *, head: tuple[str, HeadRecord] | None = None
    ) -> None:
        """Names blobs, and the newest checkpoint of an assignment, in the DHT; does not wait."""
        if self.peer is not None and self.peer.healthy:
            self._run(self._announce(self.peer, refs, head))

    def drop(self, digests: Iterable[str]) -> None:
        """Stops naming blobs and deletes them."""
        for digest in digests:
            if self.peer is not None:
                self.peer.forget(provider_key(digest))
            self.folder.blobs.delete(digest)

    def may_read(self, digest: str, peer_id: str) -> bool:
        """Shards go to anybody, everything else to the coordinator alone."""
        return digest in self._public or peer_id == self.info.coordinator

    async def _upload(self, ref: BlobRef) -> None:
        try:
            target = await self.call(lambda: self.client.upload_url(ref.digest))
            check_same_host(self.client.url, target.url)
            await upload_over_http(self.client.http, target.url, ref, self.folder.blobs)
            log.info("uploaded %s", facts(digest=ref.digest, bytes=ref.size, route="http"))
        except (CoordinatorUnreachable, Refused, TransferFailed) as failure:
            log.warning("upload of %s will be tried again: %s", ref.digest[:12], failure)
        finally:
            self._uploads.pop(ref.digest, None)

    async def _register(self) -> RegisterAnswer:
        answer = await self.client.register(
            self.info,
            self.offered_capability(),
            name=self.settings.name,
            invite=self.settings.invite,
            maddrs=self._maddrs(),
        )
        self.heartbeat_seconds = answer.heartbeat_seconds
        self._bootstrap = answer.bootstrap
        self.receipts.doubt()
        self._hold(answer.certificate)
        return answer

    def _hold(self, certificate: SignedCertificate) -> None:
        self._certificate = certificate
        if self.peer is not None:
            self.peer.renew_certificate(certificate)

    async def _announce(
        self, peer: Peer, refs: Sequence[BlobRef], head: tuple[str, HeadRecord] | None
    ) -> None:
        for ref in refs:
            await peer.announce_blob(ref)
        if head is not None:
            await peer.announce_head(*head)

    def _run(self, doing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)

    def _maddrs(self) -> tuple[str, ...]:
        """Where the coordinator may dial our peer; none while there is none."""
        return self.peer.maddrs if self.peer is not None else ()

    async def _start_peer(self) -> None:
        """Joins the DHT and says so, or leaves it to the next try."""
        if not self._bootstrap:
            log.warning("the coordinator names no peer to join yet")
            return
        try:
            self.peer = await Peer.start(
                identity=self.folder.identity,
                certificate=self._certificate,
                coordinator=self.info.coordinator,
                run=self.info.run,
                listen=self.settings.listen,
                bootstrap=self._bootstrap,
                store=self.folder.blobs,
                may_read=self.may_read,
            )
        except SwarmUnavailable as error:
            log.warning("taking part over HTTP alone for now, the DHT is out of reach: %s", error)
            return
        log.info("joined the DHT %s", facts(peer=self.peer.peer_id, at=self.peer.maddrs))
        with contextlib.suppress(CoordinatorUnreachable, Refused):
            await self.beat()

    async def _keep_peer(self) -> None:
        while True:
            await asyncio.sleep(PEER_RETRY_SECONDS)
            if self.peer is None:
                with contextlib.suppress(CoordinatorUnreachable, Refused):
                    self._bootstrap = (await self.client.run_info()).bootstrap
                await self._start_peer()
