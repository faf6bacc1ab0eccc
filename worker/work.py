"""One assignment, from the acknowledged offer to the submission."""

import asyncio
import contextlib
import errno
import itertools
import logging
import random
import shutil
from pathlib import Path
from typing import Literal

from protocol.errors import ErrorCode
from protocol.messages import AssignmentHeartbeat, Offer, Release, ReleaseReason, Submission
from protocol.records import head_key
from shared.retry import backoff_seconds
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
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

LOST_LEASE = frozenset({ErrorCode.LEASE_LOST, ErrorCode.UNKNOWN_ASSIGNMENT, ErrorCode.WRONG_STATE})


class LeaseGone(Exception):
    """The coordinator has given the assignment to somebody else, or withdrawn it."""


class Work:
    """Trains one spec under one lease, and hands in what comes of it."""

    def __init__(self, member: Membership, offer: Offer, screen: Screen) -> None:
        self.member = member
        self.offer = offer
        self.screen = screen
        self.folder = member.folder.work(offer.assignment)
        self.handed_in: Named | None = None
        self._shelf = Shelf(member, offer)
        self._beat_now = asyncio.Event()
        self._gone = asyncio.Event()
        self._progress: Event = {}
        self._durable_step: int | None = offer.resume.step if offer.resume else None
        self._trainer: TrainerProcess | None = None

    async def run(self, stopping: asyncio.Event) -> Outcome:
        """Does the work; `stopping` set means: checkpoint, give the lease back, return.

        Afterwards `handed_in` is what the coordinator has yet to fetch, if anything; all else that
        was named is deleted again.
        """
        async with background(self._heartbeats()):
            try:
                outcome = await self._train_and_hand_in(stopping)
            except LeaseGone:
                self.screen.say(f"lease {self.offer.assignment} is gone: another worker has it")
                outcome = "lost"
            except (CoordinatorUnreachable, OSError) as error:
                reason = _reason_of(error)
                self.screen.say(f"giving {self.offer.assignment} back ({reason}): {error}")
                await self._release(reason, str(error)[:500])
                outcome = "failed"
        if self.member.peer is not None:
            self.member.peer.forget(head_key(self.offer.assignment))
        if outcome != "kept":
            self._shelf.clear(but=self.handed_in)
            shutil.rmtree(self.folder, ignore_errors=True)
        return outcome

    async def _train_and_hand_in(self, stopping: asyncio.Event) -> Outcome:
        problem = problem_of(self.offer, self.member.capability)
        if problem is not None:
            self.screen.say(f"not taking {self.offer.assignment}: {problem}")
            await self._release("unavailable", problem[:500])
            return "failed"
        last = await self._train(stopping)
        return await self._hand_in(last, stopping)

    async def _train(self, stopping: asyncio.Event) -> Event:
        assignment = await unless_stopped(stopping, self._prepare_inputs())
        last: Event = {"event": "stopped", "step": 0}
        if assignment is None:
            return last
        async with TrainerProcess(assignment, log=self.member.folder.root / "trainer.log") as child:
            self._trainer = child
            async with background(self._stop_trainer(stopping)), background(self._kill_if_gone()):
                async for event in child.events():
                    await self._heed(event, is_last=stopping.is_set())
                    last = event
        if self._gone.is_set():
            raise LeaseGone
        return last

    async def _prepare_inputs(self) -> TrainerAssignment:
        offer, member = self.offer, self.member
        await member.fetch(offer.shard, public=True)
        parent = None
        if offer.parent is not None:
            weights = offer.parent.manifest.blob("model.safetensors")
            await member.fetch(weights, public=False)
            parent = str(member.folder.blobs.path(weights.digest))
        resume = await self._resume_folder()
        capability = member.capability
        return TrainerAssignment(
            spec=offer.spec,
            shard=str(member.folder.blobs.path(offer.shard.digest)),
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
            self._progress = event
            self.screen.progress(event, durable_step=self._durable_step)
        elif event["event"] == "checkpoint" and (is_last or self._shelf.has_room()):
            try:
                await self._shelf.put("training", Path(event["folder"]), event)
            except OSError as error:
                log.warning("checkpoint of step %s stays local: %s", event["step"], error)
            else:
                self._beat_now.set()

    async def _hand_in(self, last: Event, stopping: asyncio.Event) -> Outcome:
        if last["event"] == "finished":
            expert = await self._shelf.put("expert", Path(last["file"]).parent, last)
            if not await self._submit(expert, last, stopping):
                return "kept"
            self.handed_in = expert
            return "submitted"
        if last["event"] == "stopped":
            released = await self._release("stopped", "the volunteer stopped the worker")
            return "released" if released else "kept"
        message = str(last.get("message", ""))[:500]
        self.screen.say(f"training failed: {message}")
        await self._release(_release_reason(last.get("code")), message)
        return "failed"

    async def _submit(self, expert: Named, last: Event, stopping: asyncio.Event) -> bool:
        """False: asked to stop before the coordinator took it."""
        submission = Submission(
            request_id=new_request_id(),
            fencing=self.offer.fencing,
            manifest=expert.ref,
            tokens_per_second=last["tokens_per_second"],
            train_seconds=last["train_seconds"],
        )
        for attempt in itertools.count():
            try:
                await self.member.call(
                    lambda: self.member.client.submit(self.offer.assignment, submission)
                )
                break
            except CoordinatorUnreachable as error:
                wait = backoff_seconds(attempt, base=1.0, cap=60.0, random=random.random())
                log.warning("submission waits %.1f s: %s", wait, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), wait)
                    return False
            except Refused as refusal:
                if refusal.code in LOST_LEASE:
                    raise LeaseGone from refusal
                raise
        return True

    async def _release(self, reason: ReleaseReason, detail: str) -> bool:
        """False: the coordinator is away, and the lease goes on until it runs out."""
        newest = self._shelf.newest
        if newest is not None and newest.manifest.kind == "expert":
            newest = None
        release = Release(
            fencing=self.offer.fencing,
            reason=reason,
            detail=detail,
            checkpoint=newest.ref if newest else None,
            checkpoint_step=newest.manifest.step if newest else 0,
        )
        try:
            await self.member.call(
                lambda: self.member.client.release(self.offer.assignment, release)
            )
        except CoordinatorUnreachable as error:
            log.warning("the lease was not given back, it will expire: %s", error)
            return False
        except Refused as refusal:
            log.warning("the lease was gone already: %s", refusal)
        else:
            self.handed_in = newest
        return True

    async def _heartbeats(self) -> None:
        try:
            while not self._gone.is_set():
                try:
                    await self._beat()
                except CoordinatorUnreachable as error:
                    log.warning("training goes on without the coordinator: %s", error)
                except Refused as refusal:
                    log.warning("heartbeat refused: %s", refusal)
                    if refusal.code in LOST_LEASE:
                        return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._beat_now.wait(), self.member.heartbeat_seconds)
                self._beat_now.clear()
        finally:
            # Without heartbeats the lease is as good as lost, whatever ended them.
            self._gone.set()

    async def _beat(self) -> None:
        newest = self._shelf.newest
        if newest is not None and newest.manifest.kind == "expert":
            newest = None
        beat = AssignmentHeartbeat(
            fencing=self.offer.fencing,
            step=self._progress.get("step", self._durable_step or 0),
            loss=self._progress.get("loss"),
            tokens_per_second=self._progress.get("tokens_per_second", 0.0),
            checkpoint=newest.ref if newest else None,
            checkpoint_step=newest.manifest.step if newest else 0,
        )
        answer = await self.member.call(
            lambda: self.member.client.assignment_heartbeat(self.offer.assignment, beat)
        )
        self.member.heed(answer)
        self._durable_step = answer.durable_step
        self._shelf.tidy()

    async def _stop_trainer(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        assert self._trainer is not None
        await self._trainer.stop()

    async def _kill_if_gone(self) -> None:
        await self._gone.wait()
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
