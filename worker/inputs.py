"""What a training under a lease starts from, brought to where its trainer looks for it."""

import asyncio
import shutil
from pathlib import Path

from protocol.messages import Offer
from shared.files import write_atomic
from shared.training.assignment import TrainerAssignment
from shared.training.ends import Conditions
from shared.training.purity import note_conditions
from worker.checkpoints import newest_whole, step_of
from worker.device import Device
from worker.membership import Membership

RESUME = "resume"
"""The folder below that of an assignment where another worker's checkpoint lies."""

PREFIX = "prefix"
"""The folder below that of an assignment with the end of a shorter training of the same curve."""


class Inputs:
    """The inputs of one lease. `prepare` brings them, and says how the trainer is to begin."""

    def __init__(self, member: Membership, device: Device, offer: Offer) -> None:
        self.folder = member.folder.work(offer.assignment)
        self.is_private = False
        """It trains on own text, noted once: what lies on the disk may be deleted meanwhile."""
        self._member = member
        self._device = device
        self._offer = offer

    async def prepare(self) -> TrainerAssignment:
        """Raises CoordinatorUnreachable if something cannot be fetched, OSError without room."""
        offer, member = self._offer, self._member
        needed = self._needed()
        shard = member.own.train_shard(offer.shard.digest)
        self.is_private = self.is_private or shard is not None
        if shard is None:
            shard = await member.holdings.fetch_input(offer.shard, public=True, needed=needed)
        parent = None
        if offer.parent is not None:
            weights = offer.parent.manifest.blob("model.safetensors")
            parent = str(await member.holdings.fetch_input(weights, public=True, needed=needed))
        resume = await self._resume_folder()
        capability, settings = self._device.capability, self._device.settings
        assignment = TrainerAssignment(
            spec=offer.spec,
            shard=str(shard),
            parent=parent,
            parent_shape=offer.parent.shape if offer.parent else None,
            resume=None if resume is None else str(resume),
            folder=str(self.folder),
            device=capability.device,
            num_threads=capability.num_threads,
            checkpoint_seconds=min(settings.checkpoint_seconds, offer.checkpoint_seconds),
            memory_bytes=self._device.memory_cap(),
        )
        conditions = self.conditions(assignment)
        note_conditions(self.folder, conditions, goes_on=resume is not None)
        return assignment if resume is not None else await self._shortened(assignment)

    def conditions(self, assignment: TrainerAssignment) -> Conditions:
        """Under which the bits of this training come about."""
        parent = self._offer.parent
        weights = None if parent is None else parent.manifest.blob("model.safetensors").digest
        return Conditions.of(assignment, parent=weights)

    async def _shortened(self, assignment: TrainerAssignment) -> TrainerAssignment:
        """It goes on from where a shorter training of the same curve stopped here, if one did."""
        into = self.folder / PREFIX
        async with self._member.holdings.disk:
            step = await asyncio.to_thread(
                self._member.folder.ends.lay_out,
                self._offer.spec,
                self.conditions(assignment),
                into,
            )
        if step is None:
            return assignment
        self._device.board.say(f"going on from step {step}, where a shorter training stopped here")
        return assignment.model_copy(update={"resume": str(into)})

    def _needed(self) -> set[str]:
        """The blobs that this lease begins with."""
        offer = self._offer
        manifests = [offer.resume, offer.parent.manifest if offer.parent else None]
        files = [file for one in manifests if one is not None for file in one.files]
        return {offer.shard.digest, *(file.blob.digest for file in files)}

    async def _resume_folder(self) -> Path | None:
        """The newest checkpoint: this machine's own, or the durable one that the offer names."""
        self._forget_what_came_from_others()
        own = await asyncio.to_thread(newest_whole, self.folder, self._offer.spec)
        durable = self._offer.resume
        if durable is None or (own is not None and step_of(own) >= durable.step):
            return own
        target = self.folder / RESUME
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        member = self._member
        await member.holdings.make_room(
            [file.blob for file in durable.files], needed=self._needed()
        )
        for file in durable.files:
            await member.holdings.fetch(file.blob)
            shutil.copyfile(member.folder.blobs.path(file.blob.digest), target / file.name)
        member.holdings.drop(file.blob.digest for file in durable.files)
        self._device.board.say(f"going on from durable step {durable.step} of {durable.worker}")
        return target

    def _forget_what_came_from_others(self) -> None:
        """Under a new lease, training that began with another worker's checkpoint is not gone on
        with: the coordinator may have found meanwhile that the checkpoint was bad."""
        mark = self.folder / "fencing"
        before = mark.read_text() if mark.exists() else ""
        if before != str(self._offer.fencing) and (self.folder / RESUME).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, str(self._offer.fencing).encode())
