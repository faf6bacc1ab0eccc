"""What a worker says to the coordinator about one lease: heartbeats, the submission, the release.

Nothing here ends a lease but a typed refusal. A coordinator that is away, in trouble or busy is
asked again, and training goes on meanwhile.
"""

import asyncio
import contextlib
import itertools
import logging
from typing import Literal

from protocol.errors import ErrorCode
from protocol.messages import AssignmentHeartbeat, Offer, Release, ReleaseReason, Submission
from shared.clock import now
from shared.training.runner import Event
from shared.words import plain
from worker.contact import pause_seconds
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused
from worker.membership import Membership
from worker.screen import clock
from worker.shelf import Shelf
from worker.status import Board

log = logging.getLogger(__name__)

LOST_LEASE = frozenset({ErrorCode.LEASE_LOST, ErrorCode.UNKNOWN_ASSIGNMENT})
"""The work is another worker's now, or nobody's."""

EXPELLED = frozenset(
    {
        ErrorCode.BANNED,
        ErrorCode.INVITE_REQUIRED,
        ErrorCode.PROTOCOL_VERSION,
        ErrorCode.UNKNOWN_TOKEN,
    }
)
"""The coordinator will take nothing more from this worker."""

RELEASE_TRIES = 3
MAX_RELEASE_PAUSE_SECONDS = 10.0
"""A volunteer who stops the worker does not wait for long: a lease runs out by itself, too."""

HEARD_INTERVALS = 2
"""Heartbeat intervals since the last answer within which no silence of ours can end a lease."""


class LeaseGone(Exception):
    """The lease has ended; the message says why. `stalled`: because the trainer stood still."""

    def __init__(self, words: str, *, stalled: bool = False) -> None:
        super().__init__(words)
        self.stalled = stalled


class Lease:
    """One lease. `gone` is set when it has ended, and then `check` raises what ended it."""

    def __init__(self, member: Membership, offer: Offer, shelf: Shelf, board: Board) -> None:
        self.gone = asyncio.Event()
        self.durable_step: int | None = offer.resume.step if offer.resume else None
        self.first_step: int | None = None
        self._member = member
        self._offer = offer
        self._shelf = shelf
        self._board = board
        self._beat_now = asyncio.Event()
        self._progress: Event = {}
        self._moved_at = self._heard_at = _time()
        self._lasts_until = self._heard_at + offer.expires_in
        self._runs_out = False
        self._is_submitted = False
        self._refusal: Refused | None = None

    def note_progress(self, event: Event) -> None:
        """The trainer's newest `progress` event, for the next heartbeat."""
        if event["step"] != self._progress.get("step"):
            self._moved_at = _time()
        self._progress = event

    def is_running_out(self) -> bool:
        """Whether the coordinator lets it run out although we beat: the trainer does not move."""
        return self._runs_out

    def note_start(self, step: int) -> None:
        """The trainer goes on from `step`. Only the first start counts: a later one under the same
        lease goes on from what was trained under it."""
        if self.first_step is None:
            self.first_step = step

    def beat_soon(self) -> None:
        """There is something to tell that should not wait for the next heartbeat's time."""
        self._beat_now.set()

    def check(self) -> None:
        """Raises LeaseGone, or Refused if we are expelled, once the lease is gone."""
        if self._refusal is not None and self._refusal.code in EXPELLED:
            raise self._refusal
        if self.gone.is_set():
            raise self._loss(self._refusal)

    async def beats(self) -> None:
        """Renews the lease until it is gone."""
        try:
            while not self.gone.is_set():
                wait = await self._try_to_beat()
                if self._refusal is not None:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._beat_now.wait(), wait)
                self._beat_now.clear()
        finally:
            # Without heartbeats the lease is as good as lost, whatever ended them.
            self.gone.set()

    async def submit(self, submission: Submission, stopping: asyncio.Event) -> bool:
        """Hands in until there is a typed answer. False: `stopping` was set before that.

        The same submission gets the same answer, also where the first one was lost. Raises
        LeaseGone or Refused.
        """
        for attempt in itertools.count():
            try:
                await self._member.call(
                    lambda: self._member.client.submit(self._offer.assignment, submission)
                )
                break
            except CoordinatorUnreachable as error:
                wait = pause_seconds(error, attempt)
                log.warning("submission waits %.1f s: %s", wait, error)
                self._board.update(reason=f"the coordinator does not take it yet: {error}")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), wait)
                    return False
            except Refused as refusal:
                if refusal.code in LOST_LEASE or refusal.code is ErrorCode.WRONG_STATE:
                    raise self._loss(refusal) from refusal
                raise
        return True

    async def release(
        self, reason: ReleaseReason, detail: str, *, peak_memory_bytes: int | None = None
    ) -> Literal["released", "gone", "away"]:
        """Gives the lease back. "away": it was not told, and the lease goes on until it runs out.

        Raises Refused if we are expelled.
        """
        newest = self._shelf.newest_training
        release = Release(
            fencing=self._offer.fencing,
            reason=reason,
            detail=plain(detail[:500]),
            checkpoint=newest.ref if newest else None,
            checkpoint_step=newest.manifest.step if newest else 0,
            peak_memory_bytes=peak_memory_bytes,
        )
        for attempt in range(RELEASE_TRIES):
            try:
                await self._member.call(
                    lambda: self._member.client.release(self._offer.assignment, release)
                )
            except CoordinatorBusy as busy:
                log.warning("the lease was not given back yet: %s", busy)
                await asyncio.sleep(min(pause_seconds(busy, attempt), MAX_RELEASE_PAUSE_SECONDS))
            except CoordinatorUnreachable as error:
                log.warning("the lease was not given back, it will expire: %s", error)
                return "away"
            except Refused as refusal:
                if refusal.code in EXPELLED:
                    raise
                log.warning("the lease was gone already: %s", refusal)
                return "gone"
            else:
                return "released"
        return "away"

    async def _try_to_beat(self) -> float:
        """Beats, whatever comes of it; returns the seconds until the next one."""
        wait = self._member.heartbeat_seconds
        try:
            if self._is_submitted:
                await self._member.beat()
            else:
                await self._beat()
        except CoordinatorUnreachable as error:
            log.warning("training goes on without the coordinator: %s", error)
            if isinstance(error, CoordinatorBusy):
                wait = min(wait, pause_seconds(error, 0))
        except Refused as refusal:
            log.warning("heartbeat refused: %s", refusal)
            if refusal.code in LOST_LEASE or refusal.code in EXPELLED:
                self._refusal = refusal
            # It has our submission, of which we know nothing if its answer was lost: training
            # goes on to the same expert, and the submission is repeated.
            self._is_submitted |= refusal.code is ErrorCode.WRONG_STATE
        return wait

    async def _beat(self) -> None:
        member, newest = self._member, self._shelf.newest_training
        after = member.receipts.after
        beat = AssignmentHeartbeat(
            fencing=self._offer.fencing,
            step=self._progress.get("step", self.durable_step or 0),
            loss=self._progress.get("loss"),
            tokens_per_second=self._progress.get("tokens_per_second", 0.0),
            checkpoint=newest.ref if newest else None,
            checkpoint_step=newest.manifest.step if newest else 0,
            receipts_after=after,
            first_step=self.first_step,
            peak_memory_bytes=self._progress.get("peak_memory_bytes"),
        )
        answer = await member.call(
            lambda: member.client.assignment_heartbeat(self._offer.assignment, beat)
        )
        before, until = self._heard_at, self._lasts_until
        self._heard_at = _time()
        self._lasts_until = self._heard_at + answer.lease_seconds
        # Each answer prolongs the lease by the time since the one before, but for a trainer that
        # stands still: by less in the end, and then not at all.
        self._runs_out = self._lasts_until - until < 0.5 * (self._heard_at - before)
        member.heed(answer, receipts_after=after)
        self.durable_step = answer.durable_step
        self._board.update(
            lease_until=now() + answer.lease_seconds, durable_step=answer.durable_step
        )
        self._shelf.tidy()

    def _loss(self, refusal: Refused | None) -> LeaseGone:
        if refusal is None:
            return LeaseGone("its heartbeats ended")
        silence = _time() - self._heard_at
        ran_out_as_told = _time() >= self._lasts_until
        if ran_out_as_told and silence < HEARD_INTERVALS * self._member.heartbeat_seconds:
            still = clock(_time() - self._moved_at)
            step = self._progress.get("step", self.durable_step or 0)
            return LeaseGone(
                f"the trainer got no further than step {step} in {still}, so that the coordinator "
                "let it run out",
                stalled=True,
            )
        return LeaseGone(refusal.body.message)


def _time() -> float:
    return asyncio.get_running_loop().time()
