"""The workers' devices as the scheduler may count on them: who is here, how fast, and who works."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from coordinator.api.memory import MeasuredMemory
from coordinator.api.settings import ApiSettings
from coordinator.ledger.queries import WorkerRow
from coordinator.scheduling import Candidate, Index
from coordinator.workload import asks_again_at, expected_speed, make_candidate, plays_a_part

UNKNOWN_SPEED = 1e9
"""FLOP/s reckoned with for the holder of a lease of whom nothing else is known."""


class Crew:
    """Devices that work or ask for work, by seat. What it says of them goes into `index`."""

    def __init__(self, settings: ApiSettings, index: Index, memory: MeasuredMemory) -> None:
        self._settings = settings
        self._index = index
        self._memory = memory
        self._workers: dict[str, WorkerRow] = {}
        self._seats_of: dict[str, set[str]] = defaultdict(set)
        self._busy: dict[str, str] = {}
        self.observed: dict[str, float] = {}
        """FLOP/s that the last work on a seat really reached."""

        self.proven: set[str] = set()
        """Workers some of whose work was accepted."""

    def put(self, worker: WorkerRow, now: float, *, asks: bool = False) -> None:
        """Count on a device, or no more: on one that `asks` in any case."""
        # A newcomer holds one lease at a time, so it counts once: as what works, or asked last.
        rivals = () if worker.worker in self.proven else self.others(worker)
        counts = all(self._claim(other) < self._claim(worker) for other in rivals)
        if not (asks or (counts and self._plays_a_part(worker, now))):
            self._drop(worker)
            return
        for other in rivals:
            if other.seat not in self._busy:
                self._drop(other)
        self.know(worker)
        self._index.put_worker(self.candidate(worker, now))

    def know(self, worker: WorkerRow) -> None:
        """Keep what is known of a device, whether or not it is counted on."""
        self._workers[worker.seat] = worker
        self._seats_of[worker.worker].add(worker.seat)

    def knows(self, workers: Iterable[str]) -> set[str]:
        """Those of some workers of whom a device is known."""
        return set(workers) & self._seats_of.keys()

    def others(self, worker: WorkerRow) -> list[WorkerRow]:
        """What is known of the worker's other devices."""
        seats = self._seats_of.get(worker.worker, set()) - {worker.seat}
        return [self._workers[seat] for seat in seats]

    def sweep(self, now: float) -> None:
        """Forget devices that neither work nor ask any more."""
        for worker in list(self._workers.values()):
            if not self._plays_a_part(worker, now):
                self._drop(worker)

    def occupy(self, seat: str, assignment: str) -> None:
        """A device holds the lease of an assignment."""
        self._busy[seat] = assignment

    def free(self, seat: str, assignment: str) -> None:
        """A device holds this lease no more; it may hold another one by now."""
        if self._busy.get(seat) == assignment:
            del self._busy[seat]

    def speed(self, worker: WorkerRow) -> float:
        """FLOP/s to reckon with for a device."""
        return expected_speed(worker, self.observed.get(worker.seat))

    def speed_at(self, seat: str) -> float:
        """FLOP/s to reckon with for the holder of a lease, who may be unknown by now."""
        worker = self._workers.get(seat)
        return UNKNOWN_SPEED if worker is None else self.speed(worker)

    def candidate(self, worker: WorkerRow, now: float) -> Candidate:
        """A device as the scheduler reads it."""
        heartbeat_seconds = self._settings.heartbeat_seconds
        candidate = make_candidate(
            worker,
            observed=self.observed.get(worker.seat),
            proven=worker.worker in self.proven,
            trusted=self._settings.trusted,
            busy_until=asks_again_at(worker, heartbeat_seconds=heartbeat_seconds, now=now),
            now=now,
        )
        return replace(candidate, ran_out=self._memory.ran_out(worker))

    def _plays_a_part(self, worker: WorkerRow, now: float) -> bool:
        return plays_a_part(
            worker,
            works=worker.seat in self._busy,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            now=now,
        )

    def _claim(self, worker: WorkerRow) -> tuple[bool, float, int]:
        return worker.seat in self._busy, worker.asked_at or 0.0, worker.device_number

    def _drop(self, worker: WorkerRow) -> None:
        # One that drains takes no more, but how fast it is says when its last work ends.
        if worker.seat not in self._busy and self._workers.pop(worker.seat, None) is not None:
            self._seats_of[worker.worker].discard(worker.seat)
            if not self._seats_of[worker.worker]:
                del self._seats_of[worker.worker]
        self._index.drop_worker(worker.seat)
