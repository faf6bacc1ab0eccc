"""One assignment, from the acknowledged offer to the submission."""

import asyncio
import contextlib
import errno
import logging
import shutil
from pathlib import Path
from typing import Literal

from protocol.messages import Offer, ReleaseReason, Submission
from protocol.records import head_key
from shared.logs import facts
from shared.training.assignment import TrainerAssignment
from shared.training.purity import ran_under
from shared.training.runner import Event
from worker.checkpoints import drop_damaged, local_checkpoints
from worker.client import new_request_id
from worker.device import TRAINER_LOG, Device
from worker.errors import CoordinatorUnreachable
from worker.inputs import RESUME, Inputs
from worker.lease import Lease, LeaseGone
from worker.manners.watch import Manners
from worker.membership import Membership
from worker.offers import problem_of
from worker.owndata.children import Guest
from worker.owndata.offering import report_own
from worker.shelf import Named, Shelf
from worker.supervision import Supervised, Terms
from worker.tasks import background, unless_stopped
from worker.trainer.cadence import is_due

log = logging.getLogger(__name__)

Outcome = Literal["submitted", "released", "failed", "lost", "kept"]
"""kept: the coordinator is away and we stop; the next start goes on with this lease."""


class Work:
    """Trains one spec under one lease, and hands in what comes of it."""

    def __init__(self, member: Membership, device: Device, offer: Offer, manners: Manners) -> None:
        self.member = member
        self.device = device
        self.offer = offer
        self.screen = device.board
        self.manners = manners
        self.folder = member.folder.work(offer.assignment)
        self.handed_in: Named | None = None
        self.submission: Submission | None = None
        self._shelf = Shelf(member, offer, device.board)
        self._lease = Lease(member, offer, self._shelf, device.board)
        self._inputs = Inputs(member, device, offer)
        self._freed_because = ""
        self._announced_at = asyncio.get_running_loop().time()
        self._resumed: str | None = None
        self._is_broken = False

    async def run(self, stopping: asyncio.Event) -> Outcome:
        """Does the work; `stopping` set means: checkpoint, give the lease back, return.

        Afterwards `handed_in` is what the coordinator has yet to fetch, if anything, and
        `submission` how it was handed in if it is an expert; all else that was named is no blob
        any more. What was trained stays in the folder: a lost lease may come again, and then it
        goes on from there. Raises Refused if the coordinator will have nothing more of us.
        """
        async with background(self._lease.beats()):
            try:
                outcome = await self._try_while_kept(stopping)
            except LeaseGone as gone:
                self.screen.say(f"lease {self.offer.assignment} is gone: {gone}")
                outcome = "failed" if gone.stalled else "lost"
        if outcome != "kept":
            self._clear()
        return outcome

    async def _try_while_kept(self, stopping: asyncio.Event) -> Outcome:
        """A pause that is long gives the lease back; where nobody takes it, it goes on with it."""
        while True:
            outcome = await self._try(stopping)
            if outcome != "kept" or not self._freed_because or stopping.is_set():
                return outcome
            await unless_stopped(
                stopping, unless_stopped(self._lease.gone, self.manners.until_allowed())
            )
            self._lease.check()

    async def _try(self, stopping: asyncio.Event) -> Outcome:
        try:
            return await self._train_and_hand_in(stopping)
        except (CoordinatorUnreachable, OSError) as error:
            reason = _reason_of(error)
            self.screen.say(f"giving {self.offer.assignment} back ({reason}): {error}")
            await self._release(reason, str(error))
            return "failed"

    def _clear(self) -> None:
        """Nobody will ask for anything of this lease any more, except for what was handed in."""
        self._shelf.clear(but=self.handed_in)
        if self._is_broken or not local_checkpoints(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.member.forget(head_key(self.offer.assignment))

    async def _train_and_hand_in(self, stopping: asyncio.Event) -> Outcome:
        own = self.member.own
        problem = problem_of(self.offer, self.device.capability) or own.problem_of(self.offer)
        if problem is not None:
            self.screen.say(f"not taking {self.offer.assignment}: {problem}")
            await self._release("unavailable", problem)
            return "failed"
        last = await self._train(stopping)
        while last.get("code") == "bad_input" and drop_damaged(self.folder, self._resumed):
            self.screen.say("the newest checkpoint on this disk is damaged: trying an older one")
            last = await self._train(stopping)
        return await self._hand_in(last, stopping)

    async def _train(self, stopping: asyncio.Event) -> Event:
        preparing = unless_stopped(stopping, self._inputs.prepare())
        assignment = await unless_stopped(self._lease.gone, preparing)
        self._lease.check()
        last: Event = {"event": "stopped", "step": 0}
        if assignment is None:
            return last
        training = Supervised(
            assignment,
            log=self.device.path(TRAINER_LOG),
            manners=self.manners,
            terms=Terms.of(self.device, self.offer.spec, self._lease),
            say=self.screen.say,
        )
        async with (
            background(self._stop(training, stopping)),
            background(self._kill_if_gone(training)),
            contextlib.aclosing(training.events()) as events,
        ):
            async for event in events:
                is_ending = stopping.is_set() or bool(training.freed_because)
                await self._heed(event, is_last=is_ending)
                last = event
        self._freed_because, self._resumed = training.freed_because, training.resumed
        self._lease.check()
        if last["event"] == "finished":
            await self._keep_end(assignment, last)
        return last

    async def _keep_end(self, assignment: TrainerAssignment, last: Event) -> None:
        """Unless other workers' bits are in it, of which the coordinator may think ill later, or
        bits that came about under other conditions."""
        conditions = self._inputs.conditions(assignment)
        is_pure = ran_under(self.folder, conditions) and not (self.folder / RESUME).exists()
        if last.get("end") is None or not is_pure:
            return
        try:
            keep = self.member.folder.ends.keep
            async with self.member.holdings.disk:
                await asyncio.to_thread(keep, self.offer.spec, conditions, Path(last["end"]))
        except OSError as error:
            log.warning("the end of the training is not kept: %s", error)

    async def _heed(self, event: Event, *, is_last: bool) -> None:
        if event["event"] == "started":
            assignment = self.offer.assignment
            log.info("training starts %s", facts(assignment=assignment, step=event["step"]))
            self._lease.note_start(event["step"])
        elif event["event"] == "progress":
            self._lease.note_progress(event)
            self.screen.progress(event, durable_step=self._lease.durable_step)
        elif event["event"] == "reduced":
            self.screen.say(
                f"memory ran out in step {event['step'] + 1}: going on with micro-batches of "
                f"{event['micro_batch']}, the same batch in smaller parts"
            )
        elif event["event"] == "checkpoint" and self._should_announce(is_last=is_last):
            self._announced_at = asyncio.get_running_loop().time()
            try:
                await self._shelf.put("training", Path(event["folder"]), event)
            except OSError as error:
                log.warning("checkpoint of step %s stays local: %s", event["step"], error)
            else:
                self._lease.beat_soon()

    def _should_announce(self, *, is_last: bool) -> bool:
        """Whether a local checkpoint is named to the coordinator: by the durable cadence.

        Never one on own text: nobody else can go on from it, and it says more of the text.
        """
        if self._inputs.is_private:
            return False
        since = asyncio.get_running_loop().time() - self._announced_at
        due = is_due(since, self.offer.checkpoint_seconds)
        return is_last or (due and self._shelf.has_room())

    async def _hand_in(self, last: Event, stopping: asyncio.Event) -> Outcome:
        if last["event"] == "finished":
            expert = await self._shelf.put("expert", Path(last["file"]).parent, last)
            submission = Submission(
                request_id=new_request_id(),
                fencing=self.offer.fencing,
                manifest=expert.ref,
                tokens_per_second=last["tokens_per_second"],
                train_seconds=last["train_seconds"],
                first_step=self._lease.first_step,
                # With smaller micro-batches than the spec's it says nothing of what the spec needs.
                peak_memory_bytes=(
                    last["peak_memory_bytes"] if last["inexact_from"] is None else None
                ),
            )
            if not await self._lease.submit(submission, stopping):
                return "kept"
            self.handed_in, self.submission = expert, submission
            # No lease is running out meanwhile, and the submission is kept by the heartbeats.
            guest = Guest(
                num_threads=self.device.capability.num_threads,
                niceness=self.device.settings.niceness,
                manners=self.manners,
            )
            reporting = report_own(self.member, self.offer, Path(last["file"]), guest=guest)
            await unless_stopped(stopping, reporting)
            return "submitted"
        if last["event"] == "stopped":
            why = self._freed_because or "the volunteer stopped the worker"
            released = await self._release("stopped", why)
            return "released" if released else "kept"
        # Where it stood when it failed is nothing to go on from, unless it lacked memory alone.
        self._is_broken = last.get("code") != "out_of_memory"
        message = str(last.get("message", ""))[:500]
        self.screen.say(f"training failed: {message}")
        peak = last.get("peak_memory_bytes")
        await self._release(_release_reason(last.get("code")), message, peak_memory_bytes=peak)
        return "failed"

    async def _release(
        self, reason: ReleaseReason, detail: str, *, peak_memory_bytes: int | None = None
    ) -> bool:
        """False: the coordinator is away, and the lease goes on until it runs out."""
        answer = await self._lease.release(reason, detail, peak_memory_bytes=peak_memory_bytes)
        if answer == "released":
            self.handed_in = self._shelf.newest_training
        return answer != "away"

    async def _stop(self, training: Supervised, stopping: asyncio.Event) -> None:
        await stopping.wait()
        await training.stop()

    async def _kill_if_gone(self, training: Supervised) -> None:
        await self._lease.gone.wait()
        await training.kill()


def _release_reason(code: object) -> ReleaseReason:
    known: dict[object, ReleaseReason] = {
        "out_of_memory": "out_of_memory",
        "disk_full": "disk_full",
        "diverged": "diverged",
    }
    return known.get(code, "trainer_failed")


def _reason_of(error: Exception) -> ReleaseReason:
    if isinstance(error, OSError):
        return "disk_full" if error.errno == errno.ENOSPC else "trainer_failed"
    return "unavailable"
