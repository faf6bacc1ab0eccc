"""A worker's place in the swarm: its registration, its peer, and the blobs it has and owes.

Training never depends on any of it: the DHT may be down (HTTP serves), the coordinator may be away
(calls are repeated), the token may have expired (we register again).
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.certificates import SignedCertificate
from protocol.errors import ErrorCode
from protocol.messages import HeartbeatAnswer, RegisterAnswer, RunInfo, WorkerHeartbeat
from protocol.records import HeadRecord
from shared.clock import now
from shared.exchange.rates import Bucket, Rates
from shared.exchange.serving import BlobServer
from worker.cache import Cache
from worker.client import CoordinatorClient
from worker.contact import first_contact, persist
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.holdings import Holdings
from worker.manners.rules import available_seconds
from worker.owndata.texts import OwnTexts
from worker.presence import Presence
from worker.receipts import Receipts
from worker.rivals import LostTokens
from worker.screen import Screen
from worker.settings import JoinSettings
from worker.status import Board
from worker.tasks import Turns, log_failure
from worker.transfers import Transfers
from worker.uploads import Uploads

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_CACHED = 64
"""Inputs that a request for work names as held here."""

HEARD_SHARE = 0.5
"""Of a heartbeat interval, within which the answer to any heartbeat of ours counts for all."""

LOST_TOKEN = frozenset({ErrorCode.UNKNOWN_TOKEN, ErrorCode.EXPIRED_TOKEN})


class Membership:
    """Registered at one coordinator. `find_coordinator` and `register` before use, `stop` after.

    `leaves_at` is the event loop's time at which the volunteer wants the machine back, None: never.
    """

    capability: Capability
    """What this machine's first device offers now; set by `register`, renewed by the agent."""

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
        self.board = Board.around(screen)
        self.leaves_at = leaves_at
        self.client = CoordinatorClient(settings.url, folder.identity)
        self.cache = Cache(folder, cap_bytes=settings.disk_bytes)
        self.own = OwnTexts(folder.root, settings.own_texts)
        rates = Rates(
            up=Bucket(settings.upload_bytes_per_second),
            down=Bucket(settings.download_bytes_per_second),
        )
        self._presence = Presence(
            settings=settings,
            folder=folder,
            client=self.client,
            server=BlobServer(folder.blobs, self.may_read, rates=rates),
            say=screen.say,
        )
        self._transfers = Transfers(
            folder.blobs,
            self.client,
            rates=rates,
            peer=lambda: self._presence.peer,
            coordinator=self._coordinator,
            say=screen.say,
        )
        self.holdings = Holdings(
            folder, self.cache, transfers=self._transfers, presence=self._presence
        )
        self.turns = Turns()
        """For each assignment: its folder is the same whichever device works on it."""
        self.heartbeat_seconds = 10.0
        self.has_met = False
        """Whether the coordinator has said who it is."""
        self.durable: set[str] = set()
        self._info: RunInfo | None = None
        self._uploads = Uploads(folder.blobs, self._upload)
        self._tasks: set[asyncio.Task[None]] = set()
        self._registering = asyncio.Lock()
        self._lost_tokens = LostTokens()
        self._heard_at = -math.inf

    @property
    def info(self) -> RunInfo:
        """What the coordinator said of its run."""
        assert self._info is not None, "find_coordinator first"
        return self._info

    @property
    def transfer(self) -> str:
        """What is fetched or sent now, in words; empty: nothing."""
        return self._transfers.line

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
        self.has_met = True
        return self._info

    async def register(self, capability: Capability) -> RegisterAnswer:
        """Registers, however busy the coordinator is. Raises CoordinatorUnreachable or Refused."""
        self.capability = capability
        return await persist(self._register, say=self.screen.say)

    async def join_swarm(self) -> None:
        """Joins the DHT, now or as soon as it can be reached."""
        if not self.settings.http_only:
            await self._presence.start(
                self.info, certificate=self._certificate, bootstrap=self._bootstrap
            )
            self._presence.publish(self.cache.public_refs())
            self._run(self._presence.tend())

    async def stop(self) -> None:
        """Leaves: stops transfers, the peer and the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._uploads.stop()
        await self._presence.stop()
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
            if token is not None and refusal.code is ErrorCode.UNKNOWN_TOKEN:
                self._lost_tokens.note(
                    token,
                    refusal,
                    at=asyncio.get_running_loop().time(),
                    worker=self.folder.identity.peer_id,
                    folder=self.folder.root,
                )
        async with self._registering:
            # A registration voids the token before it: one is enough for all calls that wait.
            if self.client.token == token:
                await self._register()
        return await request()

    async def beat_if_due(self) -> None:
        """The heartbeat of a device without an assignment, unless another was heard just now.

        Raises CoordinatorUnreachable or Refused.
        """
        if asyncio.get_running_loop().time() - self._heard_at >= (
            HEARD_SHARE * self.heartbeat_seconds
        ):
            await self.beat()

    async def beat(self) -> HeartbeatAnswer:
        """The heartbeat of a worker, whatever its devices do."""
        after = self.receipts.after
        beat = WorkerHeartbeat(
            capability=self.offered(self.capability),
            maddrs=self._presence.maddrs,
            receipts_after=after,
        )
        answer = await self.call(lambda: self.client.heartbeat(beat))
        self.heed(answer, receipts_after=after)
        return answer

    def heed(self, answer: HeartbeatAnswer, *, receipts_after: int) -> None:
        """Does what the answer to a heartbeat with `receipts_after` asks for."""
        self._heard_at = asyncio.get_running_loop().time()
        self.receipts.take(answer.receipts, after=receipts_after)
        self.heartbeat_seconds = answer.next_heartbeat_seconds
        self.durable.update(answer.durable)
        if answer.certificate is not None:
            self._hold(answer.certificate)
        self._uploads.heed(answer.wanted)

    def offered(self, capability: Capability) -> Capability:
        """What a device offers now, and for how much longer."""
        left = None
        if self.leaves_at is not None:
            left = max(0.0, self.leaves_at - asyncio.get_running_loop().time())
        left = available_seconds(self.settings.rules, stay_seconds=left, now=now())
        return capability.model_copy(update={"available_seconds": left})

    def cached(self) -> tuple[str, ...]:
        """Digests of own text, and of shards and parents' weights here, those used last first."""
        return (*self.own.digests(), *self.cache.digests())[:MAX_CACHED]

    def publish(
        self, refs: Sequence[BlobRef], *, head: tuple[str, HeadRecord] | None = None
    ) -> None:
        """Names blobs, and the newest checkpoint of an assignment, in the DHT; does not wait."""
        self._presence.publish(refs, head=head)

    def forget(self, *keys: str) -> None:
        """Stops publishing under these keys of the DHT."""
        self._presence.forget(keys)

    def may_read(self, digest: str, peer_id: str) -> bool:
        """Public inputs go to anybody, everything else to the coordinator alone."""
        return self.cache.is_public(digest) or peer_id == self.info.coordinator

    def _coordinator(self) -> tuple[str, list[str]]:
        """Whom we trust, and where its peer listens."""
        name = self.info.coordinator
        return name, [maddr for maddr in self.info.bootstrap if maddr.endswith(f"/p2p/{name}")]

    async def _upload(self, ref: BlobRef) -> None:
        await self._transfers.upload(
            ref, ask_url=lambda: self.call(lambda: self.client.upload_url(ref.digest))
        )

    async def _register(self) -> RegisterAnswer:
        answer = await self.client.register(
            self.info,
            self.offered(self.capability),
            name=self.settings.name,
            invite=self.settings.invite,
            maddrs=self._presence.maddrs,
        )
        self.heartbeat_seconds = answer.heartbeat_seconds
        self._bootstrap = answer.bootstrap
        self.receipts.doubt()
        self._hold(answer.certificate)
        return answer

    def _hold(self, certificate: SignedCertificate) -> None:
        self._certificate = certificate
        self._presence.hold(certificate)

    def _run(self, doing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)
