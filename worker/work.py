"""One assignment, from the acknowledged offer to the submission."""

import asyncio
import errno
import logging
import shutil
from pathlib import Path
from typing import Literal

from protocol.errors import ErrorCode
from protocol.messages import Offer, ReleaseReason, Submission
from protocol.records import head_key
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
from worker.lease import Lease, LeaseGone
from worker.membership import Membership
from worker.offers import problem_of
from worker.runner import Event, TrainerProcess
from worker.screen import Screen
from worker.shelf import Named, Shelf
from worker.tasks import background, unless_stopped
from worker.trainer.assignment import TrainerAssignment

log = logging.getLogger(__name__)

Outcome = Literal["submitted", "released", "failed", "lost", "kept"]
"""kept: the coordinator is away and we stop; the next start goes on with this lease."""


class Work:
    """Trains one spec under one lease, and hands in what comes of it."""

    def __init__(self, member: Membership, offer: Offer, screen: Screen) -> None:
        self.member = member
        self.offer = offer
        self.screen = screen
        self.folder = member.folder.work(offer.assignment)
        self.handed_in: Named | None = None
        self.submission: Submission | None = None
        self._shelf = Shelf(member, offer)
        self._lease = Lease(member, offer, self._shelf)
        self._trainer: TrainerProcess | None = None

    async def run(self, stopping: asyncio.Event) -> Outcome:
        """Does the work; `stopping` set means: checkpoint, give the lease back, return.

        Afterwards `handed_in` is what the coordinator has yet to fetch, if anything, and
        `submission` how it was handed in if it is an expert; all else that was named is deleted
        again. Raises Refused if the coordinator will have nothing more of us.
        """
        async with background(self._lease.beats()):
            try:
                outcome = await self._try(stopping)
            except LeaseGone as gone:
                self.screen.say(f"lease {self.offer.assignment} is gone: {gone}")
                outcome = "failed" if gone.stalled else "lost"
            except Refused as refusal:
                if refusal.code is ErrorCode.BANNED:
                    self._clear()
                raise
        if outcome != "kept":
            self._clear()
        return outcome

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
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.member.peer is not None:
            self.member.peer.forget(head_key(self.offer.assignment))

    async def _train_and_hand_in(self, stopping: asyncio.Event) -> Outcome:
        problem = problem_of(self.offer, self.member.capability)
        if problem is not None:
            self.screen.say(f"not taking {self.offer.assignment}: {problem}")
            await self._release("unavailable", problem)
            return "failed"
        last = await self._train(stopping)
        return await self._hand_in(last, stopping)

    async def _train(self, stopping: asyncio.Event) -> Event:
        preparing = unless_stopped(stopping, self._prepare_inputs())
        assignment = await unless_stopped(self._lease.gone, preparing)
        self._lease.check()
        last: Event = {"event": "stopped", "step": 0}
        if assignment is None:
            return last
        async with TrainerProcess(assignment, log=self.member.folder.root / "trainer.log") as child:
            self._trainer = child
            async with background(self._stop_trainer(stopping)), background(self._kill_if_gone()):
                async for event in child.events():
                    await self._heed(event, is_last=stopping.is_set())
                    last = event
        self._lease.check()
        return last

    async def _prepare_inputs(self) -> TrainerAssignment:
        offer, member = self.offer, self.member
        shard = await member.fetch_input(offer.shard, public=True)
        parent = None
        if offer.parent is not None:
            weights = offer.parent.manifest.blob("model.safetensors")
            parent = str(await member.fetch_input(weights, public=False))
        resume = await self._resume_folder()
        capability = member.capability
        return TrainerAssignment(
            spec=offer.spec,
            shard=str(shard),
            parent=parent,
            parent_shape=offer.parent.shape if offer.parent else None,
            resume=None if resume is None else str(resume),
            folder=str(self.folder),
            device=capability.device,
            num_threads=capability.num_threads,
            checkpoint_seconds=offer.checkpoint_seconds,
        )

    async def _resume_folder(self) -> Path | None:
        """The newest checkpoint: this machine's own, or the durable one that the offer names."""
        own = sorted((self.folder / "checkpoints").glob("step-*/state.json"))
        own_step = int(own[-1].parent.name.removeprefix("step-")) if own else -1
        durable = self.offer.resume
        if durable is None or own_step >= durable.step:
            return own[-1].parent if own else None
        target = self.folder / "resume"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in durable.files:
            await self.member.fetch(file.blob, public=False)
            shutil.copyfile(self.member.folder.blobs.path(file.blob.digest), target / file.name)
        self.member.drop(file.blob.digest for file in durable.files)
        self.screen.say(f"going on from durable step {durable.step} of {durable.worker}")
        return target

    async def _heed(self, event: Event, *, is_last: bool) -> None:
        if event["event"] == "progress":
            self._lease.note_progress(event)
            self.screen.progress(event, durable_step=self._lease.durable_step)
        elif event["event"] == "checkpoint" and (is_last or self._shelf.has_room()):
            try:
                await self._shelf.put("training", Path(event["folder"]), event)
            except OSError as error:
                log.warning("checkpoint of step %s stays local: %s", event["step"], error)
            else:
                self._lease.beat_soon()

    async def _hand_in(self, last: Event, stopping: asyncio.Event) -> Outcome:
        if last["event"] == "finished":
            expert = await self._shelf.put("expert", Path(last["file"]).parent, last)
            submission = Submission(
                request_id=new_request_id(),
                fencing=self.offer.fencing,
                manifest=expert.ref,
                tokens_per_second=last["tokens_per_second"],
                train_seconds=last["train_seconds"],
            )
            if not await self._lease.submit(submission, stopping):
                return "kept"
            self.handed_in, self.submission = expert, submission
            return "submitted"
        if last["event"] == "stopped":
            released = await self._release("stopped", "the volunteer stopped the worker")
            return "released" if released else "kept"
        message = str(last.get("message", ""))[:500]
        self.screen.say(f"training failed: {message}")
        await self._release(_release_reason(last.get("code")), message)
        return "failed"

    async def _release(self, reason: ReleaseReason, detail: str) -> bool:
        """False: the coordinator is away, and the lease goes on until it runs out."""
        answer = await self._lease.release(reason, detail)
        if answer == "released":
            self.handed_in = self._shelf.newest_training
        return answer != "away"

    async def _stop_trainer(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        assert self._trainer is not None
        await self._trainer.stop()

    async def _kill_if_gone(self) -> None:
        await self._lease.gone.wait()
        assert self._trainer is not None
        await self._trainer.kill()


def _release_reason(code: object) -> ReleaseReason:
    known: dict[object, ReleaseReason] = {
        "out_of_memory": "out_of_memory",
        "disk_full": "disk_full",
    }
    return known.get(code, "trainer_failed")


def _reason_of(error: Exception) -> ReleaseReason:
    if isinstance(error, OSError):
        return "disk_full" if error.errno == errno.ENOSPC else "trainer_failed"
    return "unavailable"
