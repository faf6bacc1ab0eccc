"""One assignment, from the acknowledged offer to the submission."""

import asyncio
import contextlib
import itertools
import logging
import random
import shutil
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Literal

from protocol.blobs import BlobRef
from protocol.digests import canonical_bytes
from protocol.errors import ErrorCode
from protocol.manifests import FILES, CheckpointKind, CheckpointManifest, ManifestFile
from protocol.messages import AssignmentHeartbeat, Offer, Release, ReleaseReason, Submission
from protocol.records import HeadRecord, head_key, provider_key
from shared.logs import facts
from shared.retry import backoff_seconds
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
from worker.membership import Membership
from worker.runner import Event, TrainerProcess
from worker.screen import Screen
from worker.trainer.assignment import TrainerAssignment

log = logging.getLogger(__name__)

Outcome = Literal["submitted", "released", "failed", "lost", "kept"]
"""kept: asked to stop while the coordinator was away; the next start goes on with the lease."""

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
        self.submitted: BlobRef | None = None
        self._beat_now = asyncio.Event()
        self._gone = asyncio.Event()
        self._progress: Event = {}
        self._announced: tuple[BlobRef, CheckpointManifest] | None = None
        self._durable_step: int | None = offer.resume.step if offer.resume else None
        self._trainer: TrainerProcess | None = None

    async def run(self, stopping: asyncio.Event) -> Outcome:
        """Does the work; `stopping` set means: checkpoint, give the lease back, return.

        Raises CoordinatorUnreachable if what training needs cannot be fetched.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_background(self._heartbeats()))
            try:
                last = await self._train(stopping)
                return await self._hand_in(last, stopping)
            except LeaseGone:
                self.screen.say(f"lease {self.offer.assignment} is gone: another worker has it")
                return "lost"

    async def _train(self, stopping: asyncio.Event) -> Event:
        assignment = await self._prepare_inputs()
        last: Event = {"event": "stopped", "step": 0}
        if stopping.is_set():
            return last
        async with TrainerProcess(assignment, log=self.member.folder.root / "trainer.log") as child:
            self._trainer = child
            async with _background(self._stop_trainer(stopping)), _background(self._kill_if_gone()):
                async for event in child.events():
                    await self._heed(event)
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
        self.screen.say(f"going on from durable step {durable.step} of {durable.worker}")
        return target

    async def _heed(self, event: Event) -> None:
        if event["event"] == "progress":
            self._progress = event
            self.screen.progress(event, durable_step=self._durable_step)
        elif event["event"] == "checkpoint":
            await self._announce("training", Path(event["folder"]), event)
            self._beat_now.set()

    async def _announce(self, kind: CheckpointKind, folder: Path, event: Event) -> BlobRef:
        """Puts a checkpoint's files and then its manifest into the store and into the DHT."""
        blobs, peer = self.member.folder.blobs, self.member.peer
        files = []
        for name in FILES[kind]:
            ref = await asyncio.to_thread(blobs.add_file, folder / name)
            files.append(ManifestFile(name=name, blob=ref))
        manifest = CheckpointManifest(
            kind=kind,
            spec=self.offer.spec.digest,
            worker=self.member.folder.identity.peer_id,
            step=event["step"],
            loss=event.get("loss"),
            files=tuple(files),
        )
        ref = blobs.add_bytes(canonical_bytes(manifest))
        if peer is not None and peer.healthy:
            for blob in (*(file.blob for file in files), ref):
                await peer.announce_blob(blob)
            await peer.announce_head(
                self.offer.assignment,
                HeadRecord(s=manifest.step, h=ref.digest, n=ref.size, f=self.offer.fencing),
            )
        previous, self._announced = self._announced, (ref, manifest)
        if previous is not None:
            self._forget(*previous)
        log.info("announced %s", facts(kind=kind, step=manifest.step, manifest=ref.digest))
        return ref

    def _forget(self, ref: BlobRef, manifest: CheckpointManifest) -> None:
        """A training checkpoint that a newer one replaces need not be kept any longer."""
        keep = {ref.digest for ref in self._announced_blobs()}
        for blob in (ref, *(file.blob for file in manifest.files)):
            if blob.digest not in keep:
                if self.member.peer is not None:
                    self.member.peer.forget(provider_key(blob.digest))
                self.member.folder.blobs.delete(blob.digest)

    def _announced_blobs(self) -> list[BlobRef]:
        if self._announced is None:
            return []
        ref, manifest = self._announced
        return [ref, *(file.blob for file in manifest.files)]

    async def _hand_in(self, last: Event, stopping: asyncio.Event) -> Outcome:
        if last["event"] == "finished":
            ref = await self._announce("expert", Path(last["file"]).parent, last)
            if not await self._submit(ref, last, stopping):
                return "kept"
            self.submitted = ref
            shutil.rmtree(self.folder, ignore_errors=True)
            return "submitted"
        if last["event"] == "stopped":
            released = await self._release("stopped", "the volunteer stopped the worker")
            return "released" if released else "kept"
        message = str(last.get("message", ""))[:500]
        self.screen.say(f"training failed: {message}")
        await self._release(_release_reason(last.get("code")), message)
        return "failed"

    async def _submit(self, manifest: BlobRef, last: Event, stopping: asyncio.Event) -> bool:
        """False: asked to stop before the coordinator took it."""
        submission = Submission(
            request_id=new_request_id(),
            fencing=self.offer.fencing,
            manifest=manifest,
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
        announced = self._announced
        release = Release(
            fencing=self.offer.fencing,
            reason=reason,
            detail=detail,
            checkpoint=announced[0] if announced else None,
            checkpoint_step=announced[1].step if announced else 0,
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
            self.submitted = announced[0] if announced else None
        return True

    async def _heartbeats(self) -> None:
        while not self._gone.is_set():
            try:
                await self._beat()
            except CoordinatorUnreachable as error:
                log.warning("training goes on without the coordinator: %s", error)
            except Refused as refusal:
                log.warning("heartbeat refused: %s", refusal)
                if refusal.code in LOST_LEASE:
                    self._gone.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beat_now.wait(), self.member.heartbeat_seconds)
            self._beat_now.clear()

    async def _beat(self) -> None:
        announced = self._announced
        is_training = announced is not None and announced[1].kind == "training"
        beat = AssignmentHeartbeat(
            fencing=self.offer.fencing,
            step=self._progress.get("step", self._durable_step or 0),
            loss=self._progress.get("loss"),
            tokens_per_second=self._progress.get("tokens_per_second", 0.0),
            checkpoint=announced[0] if announced and is_training else None,
            checkpoint_step=announced[1].step if announced and is_training else 0,
        )
        answer = await self.member.call(
            lambda: self.member.client.assignment_heartbeat(self.offer.assignment, beat)
        )
        self.member.heed(answer)
        self._durable_step = answer.durable_step

    async def _stop_trainer(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        assert self._trainer is not None
        await self._trainer.stop()

    async def _kill_if_gone(self) -> None:
        await self._gone.wait()
        assert self._trainer is not None
        await self._trainer.kill()

    def forget_head(self) -> None:
        """Stops publishing which checkpoint of this assignment is the newest."""
        if self.member.peer is not None:
            self.member.peer.forget(head_key(self.offer.assignment))


@contextlib.asynccontextmanager
async def _background(coroutine: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _release_reason(code: object) -> ReleaseReason:
    known: dict[object, ReleaseReason] = {
        "out_of_memory": "out_of_memory",
        "disk_full": "disk_full",
    }
    return known.get(code, "trainer_failed")
