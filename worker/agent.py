"""The agent's loop: join, take an assignment, do it, hand it in, take the next."""

import asyncio
import contextlib
import itertools
import logging
import random

from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer, LeaseRequest, Offer
from shared.clock import now
from shared.retry import told_seconds
from worker import capability as capabilities
from worker.client import new_request_id
from worker.contact import pause_seconds
from worker.deliveries import Deliveries
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.lease import LOST_LEASE
from worker.membership import Membership
from worker.screen import Screen, describe_offer, describe_stay
from worker.settings import JoinSettings
from worker.tasks import unless_stopped
from worker.work import Work

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 60.0
"""How long a stopping worker waits for the coordinator to fetch what it handed in."""

MAX_FAILURES = 3
BUSY_WORDS = "the coordinator is busy, it is asked again soon"


class Agent:
    """One worker. `run` returns the exit code; `stop` makes it finish early, in good order."""

    _deliveries: Deliveries
    """What was handed in; there once the worker has joined."""

    def __init__(self, settings: JoinSettings, folder: WorkerFolder, screen: Screen) -> None:
        self.settings = settings
        self.folder = folder
        self.screen = screen
        self._stopping = asyncio.Event()
        self._failures = 0
        self._idle_words = ""

    def stop(self) -> None:
        """Finish the step, write a checkpoint, give the lease back, return from `run`."""
        self._stopping.set()

    async def run(self) -> int:
        """Works until the run is finished or `stop` is called.

        Raises WorkerError for what the volunteer has to mend.
        """
        loop, stay = asyncio.get_running_loop(), self.settings.stay_seconds
        leaves_at = None if stay is None else loop.time() + stay
        member = Membership(self.settings, self.folder, self.screen, leaves_at=leaves_at)
        leaving = None if leaves_at is None else loop.call_at(leaves_at, self._leave)
        try:
            return await self._run(member)
        finally:
            if leaving is not None:
                leaving.cancel()
            await member.stop()

    async def _run(self, member: Membership) -> int:
        if self.settings.stay_seconds is not None:
            self.screen.say(describe_stay(self.settings.stay_seconds, now=now()))
        if await unless_stopped(self._stopping, member.find_coordinator()) is None:
            return 0
        self.folder.sweep()
        if not await self._join(member):
            return 0
        self._deliveries = Deliveries(member)
        self._deliveries.take_up()
        finished = await self._work_until_done(member)
        if self._deliveries:
            self.screen.say("waiting until the coordinator holds what this worker handed in")
            await self._deliveries.finish(DELIVERY_SECONDS)
        return 1 if self._failures >= MAX_FAILURES and not finished else 0

    def _leave(self) -> None:
        self.screen.say("the time is over: finishing the step and writing a checkpoint")
        self.stop()

    async def _join(self, member: Membership) -> bool:
        """False: asked to stop before the coordinator had time for us."""
        settings = self.settings
        self.screen.say("measuring this machine (a few seconds)")
        capability = await asyncio.to_thread(
            capabilities.probe,
            device=settings.device,
            num_threads=settings.num_threads,
            memory_bytes=settings.memory_bytes,
            folder=self.folder.root,
        )
        if await unless_stopped(self._stopping, member.register(capability)) is None:
            return False
        await member.join_swarm()
        self.screen.say(
            f"joined run {member.info.run} as {self.folder.identity.peer_id}\n"
            f"  {capability.device_name}, {capability.num_threads} thread(s), "
            f"{capability.flops_per_second / 1e9:.1f} GFLOP/s measured, "
            f"{capability.free_memory_bytes / 1e9:.2f} GB for training"
        )
        return True

    async def _work_until_done(self, member: Membership) -> bool:
        """True when the run needs no more work."""
        await self._go_on_with_the_remembered_lease(member)
        attempt = 0
        request: LeaseRequest | None = None
        while not self._stopping.is_set() and self._failures < MAX_FAILURES:
            try:
                await member.beat()
                await self._deliveries.settle()
                # A request that got no answer is repeated as it was: the coordinator then repeats
                # its answer instead of giving a second offer.
                request = request or await self._lease_request(member)
                answer = await self._ask_for_work(member, request)
            except CoordinatorUnreachable as error:
                await self._wait_for_the_coordinator(member, error, attempt)
                attempt += 1
                continue
            attempt, request = 0, None
            if answer.offer is not None:
                await self._take(member, answer.offer)
            elif answer.finished:
                self.screen.say("the run is finished, thank you")
                return True
            elif answer.busy:
                self._idle(BUSY_WORDS)
                told = told_seconds(answer.retry_after_seconds, random=random.random())
                await self._rest(member, told)
            else:
                self._idle(f"waiting: {answer.reason}")
                await self._rest(member, answer.retry_after_seconds)
        return False

    async def _lease_request(self, member: Membership) -> LeaseRequest:
        await self._refresh(member)
        return LeaseRequest(
            request_id=new_request_id(),
            capability=member.offered_capability(),
            cached=member.cached(),
        )

    async def _ask_for_work(self, member: Membership, request: LeaseRequest) -> LeaseAnswer:
        try:
            return await member.call(lambda: member.client.lease(request))
        except Refused as refusal:
            if refusal.code is not ErrorCode.WRONG_STATE:
                raise
            wait = refusal.body.retry_after_seconds or member.heartbeat_seconds
            return LeaseAnswer(offer=None, reason=str(refusal)[:500], retry_after_seconds=wait)

    async def _wait_for_the_coordinator(
        self, member: Membership, error: CoordinatorUnreachable, attempt: int
    ) -> None:
        log.warning("%s", error)
        wait = pause_seconds(error, attempt)
        if isinstance(error, CoordinatorBusy):
            self._idle(BUSY_WORDS)
            await self._rest(member, wait)
        else:
            self.screen.say(f"the coordinator does not answer, next try in {wait:.0f} s")
            await self._pause(wait)

    async def _take(self, member: Membership, offer: Offer) -> None:
        if not await self._acknowledge(member, offer):
            return
        self._idle_words = ""
        self.folder.remember_offer(offer)
        self.screen.say(describe_offer(offer, member.capability))
        await self._do(member, offer)

    async def _acknowledge(self, member: Membership, offer: Offer) -> bool:
        """False: the offer has lapsed. Raises Refused."""
        lapses_at = asyncio.get_running_loop().time() + offer.expires_in
        for attempt in itertools.count():
            try:
                await member.call(
                    lambda: member.client.acknowledge(offer.assignment, offer.fencing)
                )
            except CoordinatorUnreachable as error:
                wait = pause_seconds(error, attempt)
                log.warning("the offer is not acknowledged yet: %s", error)
                if asyncio.get_running_loop().time() + wait > lapses_at:
                    break
                await self._pause(wait)
                if self._stopping.is_set():
                    break
            except Refused as refusal:
                if refusal.code not in LOST_LEASE:
                    raise
                log.warning("the offer lapsed: %s", refusal)
                break
            else:
                return True
        return False

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
            if refusal.code is ErrorCode.BANNED:
                self.folder.forget_offer()
            raise
        if work.handed_in is not None:
            self._deliveries.add(offer.assignment, work.handed_in, work.submission)
        if outcome == "kept":
            self.screen.say("the coordinator is away: the next start goes on with this lease")
        else:
            self.folder.forget_offer()
        if outcome == "submitted":
            self.screen.say(f"submitted {offer.assignment} ({offer.spec.domain})")
        self._failures = self._failures + 1 if outcome == "failed" else 0

    async def _refresh(self, member: Membership) -> None:
        member.capability = await asyncio.to_thread(
            capabilities.refresh,
            member.capability,
            memory_bytes=self.settings.memory_bytes,
            folder=self.folder.root,
        )

    def _idle(self, words: str) -> None:
        if words != self._idle_words:
            self.screen.say(words)
        self._idle_words = words

    async def _rest(self, member: Membership, seconds: float) -> None:
        """Waits, and beats meanwhile: what was handed in stays wanted."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        await self._pause(min(seconds, member.heartbeat_seconds))
        while not self._stopping.is_set() and loop.time() < until:
            with contextlib.suppress(CoordinatorUnreachable):
                await member.beat()
                await self._deliveries.settle()
            await self._pause(min(until - loop.time(), member.heartbeat_seconds))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
