"""A run on this machine from where it stands until it is finished, stalled or stopped."""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.local.choosing import is_waiting, obstacles
from coordinator.local.leases import LeaseLost, Leases
from coordinator.local.pace import Pace
from coordinator.local.scoring import LocalScoring
from coordinator.local.screen import Screen
from coordinator.local.slot import MAX_FAILURES, Bench, Slot, TrainingFails
from coordinator.local.tally import Tally, line_of, tally
from coordinator.runfile import RunFile
from coordinator.text.prepared import Prepared
from protocol.capability import Capability, Device
from shared.blobs import BlobStore
from shared.clock import now
from shared.identity import Identity
from shared.training.ends import CurveEnds

ENDS_BYTES = 16 * 2**30
"""Disk for last checkpoints from which a longer training can go on."""

CHECKPOINT_SECONDS = 60.0
"""At most so much training is lost with a crash."""

NOMINAL_SPEED = 1e9
"""What a core is reckoned to reach before its first step; only a stalled trainer is told by it."""

BEATS_A_LEASE = 4
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """How many trainers at once, on how many threads each, on which device."""

    trainers: int
    threads: int
    device: Device
    cores: int


@dataclass(frozen=True)
class Outcome:
    """How a session ended, and why."""

    state: Literal["finished", "stalled", "stopped"]
    reason: str


class Session:
    """Trainers and the scorer, over a run whose text is prepared."""

    def __init__(
        self,
        run: RunFile,
        folders: RunFolders,
        prepared: Prepared,
        ledger: Ledger,
        *,
        settings: Settings,
        screen: Screen,
    ) -> None:
        store = BlobStore(folders.blobs)
        local = folders.state / "local"
        local.mkdir(parents=True, exist_ok=True)
        self._ledger = ledger
        self._folders = folders
        self._settings = settings
        self._screen = screen
        self._heartbeat_seconds = run.timing.heartbeat_seconds
        self._leases = Leases(
            ledger,
            store,
            heartbeat_seconds=run.timing.heartbeat_seconds,
            max_attempts=min(MAX_FAILURES, run.timing.max_attempts),
            now=now,
        )
        self._bench = Bench(
            leases=self._leases,
            store=store,
            ends=CurveEnds(local / "ends", cap_bytes=ENDS_BYTES),
            work=local / "work",
            log=folders.logs / "trainer.log",
            device=settings.device,
            num_threads=settings.threads,
            checkpoint_seconds=min(run.timing.checkpoint_seconds, CHECKPOINT_SECONDS),
            screen=screen,
            changed=self._changed,
        )
        self._slots: list[Slot] = []
        self._scoring = LocalScoring(run, folders, prepared, ledger, now=now)
        self._idle_at: int | None = None
        """The version of the run for which the scorer had nothing left to do."""
        self._pace: Pace | None = None

    async def run(self, stopping: asyncio.Event) -> Outcome:
        """Goes on until the run is finished or cannot go on, or `stopping` is set.

        Then the trainers have written checkpoints, and the next session goes on from them.
        """
        with self._ledger.read() as connection:
            run = queries.get_run(connection)
        if run.phase == "finished":
            return Outcome("finished", run.phase_reason)
        workers = [_worker(self._folders, number) for number in range(self._settings.trainers)]
        former = [Identity.load(path).peer_id for path in _keys(self._folders)]
        self._leases.begin(workers, former, _capability(self._settings, self._folders.root))
        self._slots = [Slot(self._bench, worker) for worker in workers]
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer") as scorer:
            scoring = loop.run_in_executor(scorer, self._score, loop)
            training = [asyncio.create_task(slot.run()) for slot in self._slots]
            beating = asyncio.create_task(self._beat())
            try:
                return await self._watch(stopping, [scoring, beating, *training])
            finally:
                self._scoring.stop()
                await asyncio.gather(*(slot.stop() for slot in self._slots))
                beating.cancel()
                await asyncio.gather(scoring, beating, *training, return_exceptions=True)

    async def _watch(self, stopping: asyncio.Event, tasks: list["asyncio.Future[None]"]) -> Outcome:
        while not stopping.is_set():
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    if isinstance(error, TrainingFails):
                        return Outcome("stalled", str(error))
                    raise error
            outcome = self._look()
            if outcome is not None:
                return outcome
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        return Outcome("stopped", "stopped; the next call goes on from here")

    def _look(self) -> Outcome | None:
        """Shows how far the run is; how it ends, if it does."""
        version = self._leases.version
        with self._ledger.read() as connection:
            run = queries.get_run(connection)
            rows = queries.all_assignments(connection)
            accepted = queries.accepted_specs(connection)
        if run.phase == "finished":
            return Outcome("finished", run.phase_reason)
        if self._idle_at == version:
            if run.phase == "stalled":
                return Outcome("stalled", run.phase_reason)
            workers = self._leases.workers
            if not is_waiting(rows, accepted=accepted, workers=workers):
                reasons = obstacles(rows, workers=workers) or (run.phase_reason,)
                return Outcome("stalled", "; ".join(reasons))
        self._show(run.phase, rows)
        return None

    def _show(self, phase: str, rows: tuple[queries.AssignmentRow, ...]) -> None:
        running = [(slot.lease.row, slot.event) for slot in self._slots if slot.lease is not None]
        standing = tally(rows, {row.assignment: event.get("step", 0) for row, event in running})
        left = self._seconds_left(standing)
        self._screen.live(line_of(phase, standing, left, running, self._scoring.doing))

    def _seconds_left(self, standing: Tally) -> float | None:
        """The clock starts with the first steps: what is done by then has no pace."""
        moment = time.monotonic()
        if self._pace is None:
            if any(slot.event.get("event") == "progress" for slot in self._slots):
                self._pace = Pace.begin(standing, moment)
            return None
        leases = [slot.lease for slot in self._slots if slot.lease is not None]
        first_steps = {lease.row.spec.curve: lease.first_step or 0 for lease in leases}
        self._pace = self._pace.after(standing, first_steps, moment)
        return self._pace.seconds_left(standing)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds / BEATS_A_LEASE)
            self._leases.tick()
            for slot in self._slots:
                lease = slot.training
                if lease is None:
                    continue
                try:
                    self._leases.renew(lease, slot.event, flops_per_second=NOMINAL_SPEED)
                except LeaseLost as lost:
                    self._screen.say(f"{lease.assignment}: {lost}")
                    await slot.abandon()

    def _score(self, loop: asyncio.AbstractEventLoop) -> None:
        def tell(idle_at: int | None) -> None:
            loop.call_soon_threadsafe(self._scored, idle_at)

        self._scoring.run(
            idle_cores=self._idle_cores, version=lambda: self._leases.version, tell=tell
        )

    def _scored(self, idle_at: int | None) -> None:
        self._idle_at = idle_at
        if idle_at is None:
            self._look_again()

    def _idle_cores(self) -> int:
        busy = sum(slot.lease is not None for slot in self._slots)
        return self._settings.cores - busy * self._settings.threads

    def _changed(self) -> None:
        self._scoring.wake()
        self._look_again()

    def _look_again(self) -> None:
        for slot in self._slots:
            slot.look()


def _keys(folders: RunFolders) -> list[Path]:
    return sorted(folders.keys.glob("local-*.key"))


def _worker(folders: RunFolders, number: int) -> str:
    return Identity.load_or_create(folders.keys / f"local-{number + 1}.key").peer_id


def _capability(settings: Settings, folder: Path) -> Capability:
    memory = psutil.virtual_memory()
    return Capability(
        device=settings.device,
        device_name="the coordinator's own machine",
        num_threads=settings.threads,
        total_memory_bytes=int(memory.total),
        free_memory_bytes=int(memory.available),
        free_disk_bytes=int(psutil.disk_usage(str(folder)).free),
        flops_per_second=NOMINAL_SPEED,
        bfloat16=False,
    )
