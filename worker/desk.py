"""What one device of a worker does: take an assignment, do it, hand it in, take the next."""

import asyncio
import contextlib
import errno
import logging
import random
from dataclasses import dataclass, field
from typing import Literal

from protocol.errors import ErrorCode
from protocol.messages import LeaseRequest, Offer, ReleaseReason
from shared.clock import now
from shared.retry import backoff_seconds, told_seconds
from worker.asking import acknowledge, ask_for_work, give_back
from worker.client import new_request_id
from worker.contact import pause_seconds
from worker.deliveries import Deliveries
from worker.device import Device
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused
from worker.manners.watch import Manners
from worker.membership import Membership
from worker.pilots import fits_here
from worker.screen import describe_offer
from worker.tasks import unless_stopped
from worker.work import Work

log = logging.getLogger(__name__)

MAX_FAILURES = 3
ASKING_WORDS = "asking the coordinator for work"
BUSY_WORDS = "the coordinator is busy, it is asked again soon"

FAILED_WORDS = (
    f"{MAX_FAILURES} leases in a row came to nothing here: this device takes no more until the "
    "worker is started again"
)

TROUBLE_SECONDS = 15.0
MAX_TROUBLE_SECONDS = 900.0
"""A device that this machine refuses something is tried again after the first, then ever later."""

FEW_DEVICES = 4
"""More idle devices than that ask more rarely, so that the worker does not ask too often."""

End = Literal["finished", "left", "failed"]
"""finished: the run needs no more work. left: asked to leave. failed: too much in a row did."""


@dataclass(frozen=True)
class Leaving:
    """`stopping`: now, in good order. `leaving`: then, too, or once what is worked on is done."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)


class Desk:
    """The work of one device, of `num_devices` that share the membership and the deliveries."""

    def __init__(
        self,
        member: Membership,
        device: Device,
        manners: Manners,
        deliveries: Deliveries,
        *,
        leaving: Leaving,
        num_devices: int = 1,
    ) -> None:
        self._member = member
        self._device = device
        self._board = device.board
        self._manners = manners
        self._deliveries = deliveries
        self._stopping, self._leaving = leaving.stopping, leaving.leaving
        self._num_devices = num_devices
        self._failures = self._troubles = 0
        self._idle_words = ""

    async def run(self) -> End:
        """Works until the run needs no more work, or the worker is to leave.

        What this machine refuses (a full disk, say) to one of several devices stops that one for a
        while, and no other. Raises WorkerError for what the volunteer has to mend, and OSError
        where this is the only device.
        """
        while True:
            try:
                return await self._work()
            except OSError as error:
                if self._num_devices == 1:
                    raise
                log.warning("a device has trouble", exc_info=error)
                if self._leaving.is_set():
                    self._board.say(f"this device leaves: {error}")
                    return "failed"
                await self._rest_from(error)

    async def _work(self) -> End:
        self._board.update(state="waiting", reason=ASKING_WORDS)
        await self._go_on_with_the_remembered_lease()
        attempt = 0
        request: LeaseRequest | None = None
        while not self._leaving.is_set() and self._failures < MAX_FAILURES:
            try:
                await self._until_allowed()
                await self._beat()
                # A request that got no answer is repeated as it was: the coordinator then repeats
                # its answer instead of giving a second offer.
                request = request or await self._lease_request()
                if self._leaving.is_set():
                    break
                answer = await ask_for_work(self._member, request)
            except CoordinatorUnreachable as error:
                await self._wait_for_the_coordinator(error, attempt)
                attempt += 1
                continue
            attempt, request = 0, None
            self._board.update(answer=answer.reason, answer_at=now())
            if answer.offer is not None:
                await self._take(answer.offer)
            elif answer.finished:
                self._board.update(state="waiting", reason="the run is finished")
                self._board.say("the run is finished, thank you")
                return "finished"
            elif answer.busy:
                self._idle(BUSY_WORDS, BUSY_WORDS)
                told = told_seconds(answer.retry_after_seconds, random=random.random())
                await self._rest(told)
            else:
                self._idle(f"waiting: {answer.reason}", answer.reason)
                rarely = max(1.0, self._num_devices / FEW_DEVICES)
                await self._rest(rarely * answer.retry_after_seconds)
        return self._end()

    def _end(self) -> End:
        if self._failures < MAX_FAILURES:
            return "left"
        if self._num_devices > 1:
            self._board.update(state="waiting", reason=FAILED_WORDS)
            self._board.say(FAILED_WORDS)
        return "failed"

    async def _lease_request(self) -> LeaseRequest:
        device = self._device
        await asyncio.to_thread(device.refresh)
        if device.number == 0:
            self._member.capability = device.capability
        return LeaseRequest(
            request_id=new_request_id(),
            capability=self._member.offered(device.capability),
            cached=self._member.cached(),
            device_number=device.number,
        )

    async def _wait_for_the_coordinator(self, error: CoordinatorUnreachable, attempt: int) -> None:
        log.warning("%s", error)
        wait = pause_seconds(error, attempt)
        if isinstance(error, CoordinatorBusy):
            self._idle(BUSY_WORDS, BUSY_WORDS)
            await self._rest(wait)
        else:
            self._board.update(state="away", reason=str(error), asks_at=now() + wait)
            self._board.say(f"the coordinator does not answer, next try in {wait:.0f} s")
            await self._pause(wait)

    async def _take(self, offer: Offer) -> None:
        fits = unless_stopped(self._leaving, fits_here(self._member, self._device, offer))
        if not await fits or self._leaving.is_set():
            return
        # A device that lost this work may not know it yet: it does so with its next heartbeat.
        async with self._member.turns.at(offer.assignment):
            if self._leaving.is_set():
                return
            if not await acknowledge(self._member, offer, leaving=self._leaving):
                return
            self._idle_words = ""
            try:
                self._device.folder.remember_offer(offer, self._device.number)
            except OSError as error:
                full = error.errno == errno.ENOSPC
                reason: ReleaseReason = "disk_full" if full else "unavailable"
                await give_back(self._member, offer, reason, str(error))
                raise
            own = self._member.own.digests()
            self._board.say(describe_offer(offer, self._device.capability, own_shards=own))
            await self._do(offer, reason=offer.reason)

    async def _go_on_with_the_remembered_lease(self) -> None:
        offer = self._device.folder.remembered_offer(self._device.number)
        if offer is not None:
            async with self._member.turns.at(offer.assignment):
                what = "trouble with this device" if self._troubles else "a restart"
                self._board.say(f"going on with {offer.assignment} after {what}")
                await self._do(offer, reason=f"its lease outlived {what} of this worker")

    async def _do(self, offer: Offer, *, reason: str) -> None:
        self._board.take(offer, reason=reason)
        folder, number = self._device.folder, self._device.number
        work = Work(self._member, self._device, offer, self._manners)
        try:
            outcome = await work.run(self._stopping)
        except Refused as refusal:
            if refusal.code is ErrorCode.BANNED:
                folder.forget_offer(number)
            raise
        finally:
            self._board.put_down()
            if not self._stopping.is_set():
                self._board.update(state="waiting", reason=ASKING_WORDS)
        if work.handed_in is not None:
            self._deliveries.add(offer.assignment, work.handed_in, work.submission)
        if outcome == "kept":
            self._board.say("the coordinator is away: the next start goes on with this lease")
        else:
            folder.forget_offer(number)
            folder.sweep_work()
        if outcome == "submitted":
            self._board.say(f"submitted {offer.assignment} ({offer.spec.domain})")
        self._failures = self._failures + 1 if outcome == "failed" else 0
        self._troubles = 0

    async def _beat(self) -> None:
        """A sign of life, unless another device gave one. Raises CoordinatorUnreachable."""
        if self._num_devices == 1:
            await self._member.beat()
        else:
            await self._member.beat_if_due()
        await self._deliveries.settle()

    async def _until_allowed(self) -> None:
        """Waits until training may run, and beats meanwhile. Raises CoordinatorUnreachable."""
        while not self._manners.verdict.may_train and not self._leaving.is_set():
            await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._member.heartbeat_seconds):
                    await unless_stopped(self._leaving, self._manners.until_allowed())

    def _idle(self, words: str, reason: str) -> None:
        self._board.update(state="waiting", reason=reason)
        if words != self._idle_words:
            self._board.say(words)
        self._idle_words = words

    async def _rest_from(self, error: OSError) -> None:
        """Waits for longer with each trouble that comes before any work is done."""
        wait = backoff_seconds(
            self._troubles, base=TROUBLE_SECONDS, cap=MAX_TROUBLE_SECONDS, random=random.random()
        )
        self._troubles += 1
        self._board.update(state="waiting", reason=f"this device has trouble: {error}")
        self._board.say(f"this device has trouble, next try in {wait:.0f} s: {error}")
        until = _time() + wait
        while not self._leaving.is_set() and (left := until - _time()) > 0.0:
            # A heartbeat writes to the same disk.
            with contextlib.suppress(OSError):
                await self._rest(left)

    async def _rest(self, seconds: float) -> None:
        """Waits, and beats meanwhile: what was handed in stays wanted."""
        member, until = self._member, _time() + seconds
        self._board.update(asks_at=now() + seconds)
        await self._pause(min(seconds, member.heartbeat_seconds))
        while not self._leaving.is_set() and _time() < until:
            with contextlib.suppress(CoordinatorUnreachable):
                await self._beat()
            await self._pause(min(until - _time(), member.heartbeat_seconds))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)


def _time() -> float:
    return asyncio.get_running_loop().time()
