"""The agent's loop: join, take an assignment, do it, hand it in, take the next."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine

from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer, Offer
from shared.retry import backoff_seconds
from worker import capability as capabilities
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.membership import Membership
from worker.screen import Screen, describe_offer
from worker.settings import JoinSettings
from worker.work import LOST_LEASE, Outcome, Work

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 60.0
"""How long a stopping worker waits for the coordinator to fetch what it handed in."""

MAX_FAILURES = 3
WAITS = frozenset({ErrorCode.NOT_READY, ErrorCode.WRONG_STATE, ErrorCode.INTERNAL})


class Agent:
    """One worker. `run` returns the exit code; `stop` makes it finish early, in good order."""

    def __init__(self, settings: JoinSettings, folder: WorkerFolder, screen: Screen) -> None:
        self.settings = settings
        self.folder = folder
        self.screen = screen
        self._stopping = asyncio.Event()
        self._undelivered: set[str] = set()
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
            if not await self._unless_stopped(member.find_coordinator()):
                return 0
            await self._join(member)
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

    async def _unless_stopped(self, doing: Coroutine[None, None, None]) -> bool:
        """Whether it was done before `stop` was called. Raises what it raises."""
        task = asyncio.create_task(doing)
        waiting = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        done = task.done()
        for other in (task, waiting):
            other.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        if done:
            task.result()
        return done

    async def _work_until_done(self, member: Membership) -> bool:
        """True when the run needs no more work."""
        await self._go_on_with_the_remembered_lease(member)
        attempt = 0
        request_id = new_request_id()
        while not self._stopping.is_set() and self._failures < MAX_FAILURES:
            await self._refresh(member)
            try:
                answer = await self._ask_for_work(member, request_id)
            except CoordinatorUnreachable as error:
                wait = backoff_seconds(attempt, base=1.0, cap=60.0, random=random.random())
                attempt += 1
                self.screen.say(f"the coordinator does not answer, next try in {wait:.0f} s")
                log.warning("%s", error)
                await self._pause(wait)
                continue
            attempt, request_id = 0, new_request_id()
            if answer.offer is not None:
                await self._take(member, answer.offer)
            elif answer.finished:
                self.screen.say("the run is finished, thank you")
                return True
            else:
                self._idle(answer.reason)
                await self._pause(answer.retry_after_seconds)
        return False

    async def _ask_for_work(self, member: Membership, request_id: str) -> LeaseAnswer:
        try:
            await member.beat()
            return await member.call(lambda: member.client.lease(member.capability, request_id))
        except Refused as refusal:
            if refusal.code not in WAITS:
                raise
            wait = refusal.body.retry_after_seconds or member.heartbeat_seconds
            return LeaseAnswer(offer=None, reason=str(refusal), retry_after_seconds=wait)

    async def _take(self, member: Membership, offer: Offer) -> None:
        try:
            await member.call(lambda: member.client.acknowledge(offer.assignment, offer.fencing))
        except Refused as refusal:
            log.warning("the offer lapsed: %s", refusal)
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
        outcome = await self._outcome_of(work)
        work.forget_head()
        if outcome == "kept":
            self.screen.say("the coordinator is away: the next start goes on with this lease")
        else:
            self.folder.forget_offer()
        if work.submitted is not None:
            self._undelivered.add(work.submitted.digest)
        if outcome == "submitted":
            self.screen.say(f"submitted {offer.assignment} ({offer.spec.domain})")
        self._failures = self._failures + 1 if outcome == "failed" else 0

    async def _outcome_of(self, work: Work) -> Outcome:
        try:
            return await work.run(self._stopping)
        except CoordinatorUnreachable as error:
            self.screen.say(f"could not fetch what this assignment needs: {error}")
            return "failed"
        except Refused as refusal:
            if refusal.code not in LOST_LEASE:
                raise
            return "lost"

    async def _deliver(self, member: Membership) -> None:
        """Stays until the coordinator holds what this worker handed in, or for a minute."""
        if self._undelivered:
            self.screen.say("waiting until the coordinator holds what this worker handed in")
        deadline = asyncio.get_running_loop().time() + DELIVERY_SECONDS
        while self._undelivered and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(CoordinatorUnreachable):
                await member.beat()
            self._undelivered -= member.durable
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
