"""One of the machine's trainers: one assignment after the other, from its inputs to its expert."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.local.leases import MODEL, Lease, LeaseLost, Leases
from coordinator.local.screen import Screen
from coordinator.purposes import is_measurement
from coordinator.workload import describe
from protocol.capability import Device
from protocol.messages import ReleaseReason
from shared.blobs import BlobStore
from shared.logs import facts
from shared.tensorfiles import TensorFileError
from shared.training.assignment import TrainerAssignment
from shared.training.ends import Conditions, CurveEnds
from shared.training.purity import note_conditions, ran_under
from shared.training.resident import ResidentTrainer
from shared.training.runner import Event

log = logging.getLogger(__name__)

PREFIX = "prefix"
LOOK_SECONDS = 0.5
MAX_FAILURES = 2
"""Of one assignment: the first may have been the checkpoint's or the machine's fault."""


class TrainingFails(Exception):
    """A training cannot be done on this machine; the message says which and why."""


@dataclass(frozen=True)
class Bench:
    """What all trainers of a run have in common. `work` has a folder for each assignment."""

    leases: Leases
    store: BlobStore
    ends: CurveEnds
    work: Path
    log: Path
    device: Device
    num_threads: int
    checkpoint_seconds: float
    screen: Screen
    changed: Callable[[], None]
    """Called when the scorer, or another trainer, may have something to do."""


@dataclass(frozen=True)
class _Begun:
    """A training that is about to go on from `step`, and what its bits depend on."""

    assignment: TrainerAssignment
    conditions: Conditions
    step: int


class Slot:
    """One trainer and the worker that it is to the ledger."""

    def __init__(self, bench: Bench, worker: str) -> None:
        self.worker = worker
        self.lease: Lease | None = None
        self.event: Event = {}
        """The newest of the training under way."""
        self._bench = bench
        self._trainer = ResidentTrainer(num_threads=bench.num_threads, log=bench.log)
        self._failures: dict[str, int] = {}
        self._look = asyncio.Event()
        self._stopping = asyncio.Event()
        self._is_lost = False
        self._is_trained = False

    @property
    def training(self) -> Lease | None:
        """The lease that heartbeats keep alive: not that of an expert which is being handed in."""
        return None if self._is_trained else self.lease

    async def run(self) -> None:
        """Works until `stop`. Raises TrainingFails."""
        async with self._trainer:
            await self._trainer.start()
            self.lease = self._bench.leases.take_up(self.worker)
            while not self._stopping.is_set():
                self._look.clear()
                self.lease = self.lease or self._bench.leases.take(self.worker)
                if self.lease is None:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._look.wait(), LOOK_SECONDS)
                    continue
                try:
                    await self._do(self.lease)
                except OSError as error:
                    words = f"training {describe(self.lease.row.spec)} failed: {error}"
                    raise TrainingFails(words) from error
                finally:
                    self.lease, self.event = None, {}
                    self._is_trained = self._is_lost = False
                    self._bench.changed()

    def look(self) -> None:
        """There may be an assignment for an idle trainer."""
        self._look.set()

    async def abandon(self) -> None:
        """The lease is gone: what was trained stays, should the assignment come again."""
        self._is_lost = True
        await self._trainer.stop()

    async def stop(self) -> None:
        """Lets the trainer finish its step and write a checkpoint; the lease stays with us."""
        self._stopping.set()
        self.look()
        await self._trainer.stop()

    async def _do(self, lease: Lease) -> None:
        begun = await asyncio.to_thread(self._prepare, lease)
        if self._stopping.is_set():
            return
        lease = self.lease = replace(lease, first_step=begun.step)
        words = facts(assignment=lease.assignment, worker=self.worker)
        log.info("training %s from=%d %s", describe(lease.row.spec), begun.step, words)
        last = self.event = {"step": begun.step}
        async for event in self._trainer.train(begun.assignment):
            last = event
            if event["event"] in ("started", "progress"):
                self.event = event
        if last["event"] == "finished":
            self._is_trained = True
            await self._end(lease, begun, last)
        elif not (self._stopping.is_set() or self._is_lost):
            self._failed(lease, begun.assignment, last)

    async def _end(self, lease: Lease, begun: _Begun, last: Event) -> None:
        try:
            await asyncio.to_thread(self._hand_in, lease, begun.conditions, last)
        except LeaseLost as lost:
            self._bench.screen.say(f"{describe(lease.row.spec)} is trained again: {lost}")
        except TensorFileError as error:
            failure = {"code": "trainer_failed", "message": str(error)}
            self._failed(lease, begun.assignment, failure)

    def _prepare(self, lease: Lease) -> _Begun:
        bench, spec = self._bench, lease.row.spec
        parent = bench.leases.parent_of(lease)
        weights = None if parent is None else parent.manifest.blob(MODEL).digest
        folder = bench.work / lease.assignment
        folder.mkdir(parents=True, exist_ok=True)
        own = sorted((folder / "checkpoints").glob("step-*/state.json"))
        assignment = TrainerAssignment(
            spec=spec,
            shard=str(bench.store.path(spec.train_shard)),
            parent=None if weights is None else str(bench.store.path(weights)),
            parent_shape=None if parent is None else parent.spec.shape,
            resume=str(own[-1].parent) if own else None,
            folder=str(folder),
            device=bench.device,
            num_threads=bench.num_threads,
            checkpoint_seconds=bench.checkpoint_seconds,
        )
        conditions = Conditions.of(assignment, parent=weights)
        note_conditions(folder, conditions, goes_on=bool(own))
        if own:
            return _Begun(assignment, conditions, int(own[-1].parent.name.removeprefix("step-")))
        step = bench.ends.lay_out(spec, conditions, folder / PREFIX)
        if step is None:
            return _Begun(assignment, conditions, 0)
        resumed = assignment.model_copy(update={"resume": str(folder / PREFIX)})
        return _Begun(resumed, conditions, step)

    def _hand_in(self, lease: Lease, conditions: Conditions, last: Event) -> None:
        bench, spec = self._bench, lease.row.spec
        if last["end"] is not None and ran_under(bench.work / lease.assignment, conditions):
            try:
                bench.ends.keep(spec, conditions, Path(last["end"]))
            except OSError as error:
                log.warning("the end of %s is not kept: %s", lease.assignment, error)
        bench.leases.hand_in(lease, last)
        shutil.rmtree(bench.work / lease.assignment, ignore_errors=True)

    def _failed(self, lease: Lease, assignment: TrainerAssignment, last: Event) -> None:
        """Tries again once, from before the checkpoint that this began with. TrainingFails then,
        unless the run goes on without it or says itself that it cannot.
        """
        bench, number = self._bench, self._failures.get(lease.assignment, 0) + 1
        self._failures[lease.assignment] = number
        code, message = last["code"], str(last["message"])
        may_be_tried = bench.leases.give_back(lease, _reason_of(code), message)
        words = f"training {describe(lease.row.spec)} failed: {message}"
        if code == "disk_full":
            raise TrainingFails(words)
        if assignment.resume is not None:
            shutil.rmtree(assignment.resume, ignore_errors=True)
        if number >= MAX_FAILURES or not may_be_tried:
            shutil.rmtree(bench.work / lease.assignment, ignore_errors=True)
            if not may_be_tried and is_measurement(lease.row.schemes):
                bench.screen.say(words)
                return
            raise TrainingFails(words)
        bench.screen.say(f"{words}; trying once more")


def _reason_of(code: object) -> ReleaseReason:
    known: dict[object, ReleaseReason] = {
        "out_of_memory": "out_of_memory",
        "disk_full": "disk_full",
        "diverged": "diverged",
    }
    return known.get(code, "trainer_failed")
