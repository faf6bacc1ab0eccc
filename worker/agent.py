"""The agent's loop: join, take an assignment, do it, hand it in, take the next."""

import asyncio
import contextlib
import logging
import random

from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer, LeaseRequest, Offer
from shared.retry import backoff_seconds
from worker import capability as capabilities
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.membership import Membership
from worker.screen import Screen, describe_offer
from worker.settings import JoinSettings
from worker.tasks import unless_stopped
from worker.work import LOST_LEASE, Work

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 60.0
"""How long a stopping worker waits for the coordinator to fetch what it handed in."""

MAX_FAILURES = 3
WAITS = frozenset({ErrorCode.WRONG_STATE})


class Agent:
    """One worker. `run` returns the exit code; `stop` makes it finish early, in good order."""

    def __init__(self, settings: JoinSettings, folder: WorkerFolder, screen: Screen) -> None:
        self.settings = settings
        self.folder = folder
        self.screen = screen
        self._stopping = asyncio.Event()
        self._undelivered: dict[str, list[str]] = {}
        self._failures = 0
        self._idle_reason = ""

    def stop(self) -> None:
        """Finish the step, write a checkpoint, give the lease back, return from `run`."""
        self._stopping.set()

    async def run(self) -> int:
        """Works until the run is finished or `stop` is called.

        Raises WorkerError for what the volunteer has to mend.
        """
        member = Membership(self.settings, self.folder)
        try:
            if await unless_stopped(self._stopping, member.find_coordinator()) is None:
                return 0
            self.folder.sweep()
            await self._join(member)
            self._take_up_deliveries(member)
            finished = await self._work_until_done(member)
            await self._deliver(member)
        finally:
            await member.stop()
        return 1 if self._failures >= MAX_FAILURES and not finished else 0

    async def _join(self, member: Membership) -> None:
        settings = self.settings
        self.screen.say("measuring this machine (a few seconds)")
        capability = await asyncio.to_thread(
            capabilities.probe,
            device=settings.device,
            num_threads=settings.num_threads,
            memory_bytes=settings.memory_bytes,
            folder=self.folder.root,
        )
        await member.start(capability)
        self.screen.say(
            f"joined run {member.info.run} as {self.folder.identity.peer_id}\n"
            f"  {capability.device_name}, {capability.num_threads} thread(s), "
            f"{capability.flops_per_second / 1e9:.1f} GFLOP/s measured, "
            f"{capability.free_memory_bytes / 1e9:.2f} GB for training"
        )

    async def _work_until_done(self, member: Membership) -> bool:
        """True when the run needs no more work."""
        await self._go_on_with_the_remembered_lease(member)
        attempt = 0
        request: LeaseRequest | None = None
        while not self._stopping.is_set() and self._failures < MAX_FAILURES:
            # A request that got no answer is repeated as it was: the coordinator then repeats its
            # answer instead of giving a second offer.
            request = request or await self._lease_request(member)
            try:
                answer = await self._ask_for_work(member, request)
            except CoordinatorUnreachable as error:
                wait = backoff_seconds(attempt, base=1.0, cap=60.0, random=random.random())
                attempt += 1
                self.screen.say(f"the coordinator does not answer, next try in {wait:.0f} s")
                log.warning("%s", error)
                await self._pause(wait)
                continue
            attempt, request = 0, None
            if answer.offer is not None:
                await self._take(member, answer.offer)
            elif answer.finished:
                self.screen.say("the run is finished, thank you")
                return True
            else:
                self._idle(answer.reason)
                await self._pause(answer.retry_after_seconds)
        return False

    async def _lease_request(self, member: Membership) -> LeaseRequest:
        await self._refresh(member)
        return LeaseRequest(request_id=new_request_id(), capability=member.capability)

    async def _ask_for_work(self, member: Membership, request: LeaseRequest) -> LeaseAnswer:
        try:
            await member.beat()
            self._forget_delivered(member)
            return await member.call(lambda: member.client.lease(request))
        except Refused as refusal:
            if refusal.code not in WAITS:
                raise
            wait = refusal.body.retry_after_seconds or member.heartbeat_seconds
            return LeaseAnswer(offer=None, reason=str(refusal), retry_after_seconds=wait)

    async def _take(self, member: Membership, offer: Offer) -> None:
        try:
            await member.call(lambda: member.client.acknowledge(offer.assignment, offer.fencing))
        except (Refused, CoordinatorUnreachable) as error:
            log.warning("the offer lapsed: %s", error)
            return
        self.folder.remember_offer(offer)
        self.screen.say(describe_offer(offer, member.capability))
        await self._do(member, offer)

    async def _go_on_with_the_remembered_lease(self, member: Membership) -> None:
        offer = self.folder.remembered_offer()
        if offer is not None:
            self.screen.say(f"going on with {offer.assignment} after a restart")
            await self._do(member, offer)

    async def _do(self, member: Membership, offer: Offer) -> None:
        work = Work(member, offer, self.screen)
        try:
            outcome = await work.run(self._stopping)
        except Refused as refusal:
            if refusal.code not in LOST_LEASE:
                raise
            outcome = "lost"
        if work.handed_in is not None:
            self._undelivered[work.handed_in.ref.digest] = [
                blob.digest for blob in work.handed_in.blobs
            ]
            self.folder.remember_deliveries(self._undelivered)
        if outcome == "kept":
            self.screen.say("the coordinator is away: the next start goes on with this lease")
        else:
            self.folder.forget_offer()
        if outcome == "submitted":
            self.screen.say(f"submitted {offer.assignment} ({offer.spec.domain})")
        self._failures = self._failures + 1 if outcome == "failed" else 0

    def _take_up_deliveries(self, member: Membership) -> None:
        """Names again what a former life of this worker handed in."""
        for manifest, digests in self.folder.remembered_deliveries().items():
            if all(self.folder.blobs.has(digest) for digest in digests):
                self._undelivered[manifest] = digests
                member.publish([self.folder.blobs.pieces(digest).ref() for digest in digests])

    def _forget_delivered(self, member: Membership) -> None:
        """The coordinator holds these: our own copy may go."""
        delivered = [manifest for manifest in self._undelivered if manifest in member.durable]
        for manifest in delivered:
            member.drop(self._undelivered.pop(manifest))
        if delivered:
            self.folder.remember_deliveries(self._undelivered)

    async def _deliver(self, member: Membership) -> None:
        """Stays until the coordinator holds what this worker handed in, or for a minute."""
        if self._undelivered:
            self.screen.say("waiting until the coordinator holds what this worker handed in")
        deadline = asyncio.get_running_loop().time() + DELIVERY_SECONDS
        while self._undelivered and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(CoordinatorUnreachable):
                await member.beat()
            self._forget_delivered(member)
            if self._undelivered:
                await asyncio.sleep(min(1.0, member.heartbeat_seconds))

    async def _refresh(self, member: Membership) -> None:
        member.capability = await asyncio.to_thread(
            capabilities.refresh,
            member.capability,
            memory_bytes=self.settings.memory_bytes,
            folder=self.folder.root,
        )

    def _idle(self, reason: str) -> None:
        if reason != self._idle_reason:
            self.screen.say(f"waiting: {reason}")
        self._idle_reason = reason

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
