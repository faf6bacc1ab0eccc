"""Who gets what: the real scheduler, and two baselines that choose among what fits.

Every policy is told of the same events. Only the real scheduler predicts, waits and backs up.
"""

import heapq
import random
import time
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.fleet.pieces import Piece, Type
from coordinator.scheduling import Backup, Candidate, Choice, Index, NoWork, Running, Work

Answer = Choice | Backup | NoWork


class Policy(Protocol):
    """What the simulation asks of a scheduler. `seconds` collects the time of each decision."""

    seconds: list[float]

    def put_open(self, piece: Piece, flops: float, not_before: float, /) -> None: ...
    def drop_open(self, assignment: str, /) -> None: ...
    def put_running(self, piece: Piece, flops: float, running: "Underway", /) -> None: ...
    def drop_running(self, assignment: str) -> None: ...
    def put_worker(self, candidate: Candidate) -> None: ...
    def drop_worker(self, worker: str) -> None: ...
    def choose(self, worker: str, now: float, waits_since: float | None, /) -> Answer: ...


@dataclass(frozen=True)
class Underway:
    """What is known of an attempt when it starts or reports."""

    assignment: str
    worker: str
    finish: float
    stalls_at: float
    backed_up: bool
    backup_of: str | None


class TargetFinish:
    """`coordinator.scheduling` itself."""

    def __init__(self, *, patience_seconds: float) -> None:
        self.seconds: list[float] = []
        self._index = Index()
        self._patience = patience_seconds

    def put_open(self, piece: Piece, flops: float, not_before: float) -> None:
        """Open from `not_before` on."""
        self._index.put_work(_work(piece.name, piece, flops, not_before))

    def drop_open(self, assignment: str) -> None:
        """Its backup was accepted."""
        self._index.drop_work(assignment)

    def put_running(self, piece: Piece, flops: float, running: Underway) -> None:
        """An offer was made, or its prediction has changed."""
        self._index.put_running(
            Running(
                work=_work(running.assignment, piece, flops, 0.0),
                worker=running.worker,
                finish=running.finish,
                stalls_at=running.stalls_at,
                backed_up=running.backed_up,
                backup_of=running.backup_of,
            )
        )

    def drop_running(self, assignment: str) -> None:
        """An attempt has ended."""
        self._index.drop_running(assignment)

    def put_worker(self, candidate: Candidate) -> None:
        """A worker asks, or was told when to ask again."""
        self._index.put_worker(candidate)

    def drop_worker(self, worker: str) -> None:
        """A worker is silent for too long."""
        self._index.drop_worker(worker)

    def choose(self, worker: str, now: float, waits_since: float | None) -> Answer:
        """One decision, timed."""
        start = time.thread_time()
        answer = self._index.choose(
            worker, now=now, waits_since=waits_since, patience_seconds=self._patience
        )
        self.seconds.append(time.thread_time() - start)
        if isinstance(answer, Choice):
            self._index.drop_work(answer.assignment)
        return answer


@dataclass
class _Baseline:
    """Open pieces by type, and what is known of the workers."""

    seconds: list[float] = field(default_factory=list)
    workers: dict[str, Candidate] = field(default_factory=dict)
    shelves: dict[Type, list[tuple[str, float]]] = field(default_factory=dict)

    def drop_open(self, assignment: str) -> None:
        """There are no backups."""

    def put_running(self, piece: Piece, flops: float, running: Underway) -> None:
        """Nothing is predicted."""

    def drop_running(self, assignment: str) -> None:
        """Nothing is predicted."""

    def put_worker(self, candidate: Candidate) -> None:
        """A worker asks."""
        self.workers[candidate.worker] = candidate

    def drop_worker(self, worker: str) -> None:
        """A worker is silent for too long."""
        self.workers.pop(worker, None)

    def _fitting(self, worker: str) -> list[Type]:
        offered = self.workers[worker].capability
        return [
            one
            for one, pieces in self.shelves.items()
            if pieces
            and one.memory_bytes[offered.device] <= offered.free_memory_bytes
            and one.disk_bytes <= offered.free_disk_bytes
        ]


class FirstComeFirstServed(_Baseline):
    """The oldest open piece that fits the machine."""

    def put_open(self, piece: Piece, _flops: float, not_before: float) -> None:
        """Back in its old place."""
        heapq.heappush(self.shelves.setdefault(piece.type, []), (piece.name, not_before))

    def choose(self, worker: str, now: float, _waits_since: float | None) -> Answer:
        """The oldest that fits and does not pause."""
        heads = [
            (self.shelves[one][0][0], one)
            for one in self._fitting(worker)
            if self.shelves[one][0][1] <= now
        ]
        if not heads:
            return NoWork("nothing fits")
        _, one = min(heads, key=lambda head: head[0])
        return Choice(heapq.heappop(self.shelves[one])[0], "first")


class AnyFeasible(_Baseline):
    """Any open piece that fits the machine, as BOINC's scheduler takes from its job cache."""

    def __init__(self, random: random.Random) -> None:
        super().__init__()
        self._random = random

    def put_open(self, piece: Piece, _flops: float, not_before: float) -> None:
        """Anywhere."""
        self.shelves.setdefault(piece.type, []).append((piece.name, not_before))

    def choose(self, worker: str, now: float, _waits_since: float | None) -> Answer:
        """A random one that fits; none when the drawn one pauses."""
        fitting = self._fitting(worker)
        if not fitting:
            return NoWork("nothing fits")
        (one,) = self._random.choices(fitting, weights=[len(self.shelves[k]) for k in fitting])
        pieces = self.shelves[one]
        place = self._random.randrange(len(pieces))
        if pieces[place][1] > now:
            return NoWork("the drawn one pauses")
        pieces[place], pieces[-1] = pieces[-1], pieces[place]
        return Choice(pieces.pop()[0], "any")


def _work(assignment: str, piece: Piece, flops: float, not_before: float) -> Work:
    return Work(
        assignment=assignment,
        words=piece.type.words,
        flops=flops,
        memory_bytes=piece.type.memory_bytes,
        disk_bytes=piece.type.disk_bytes,
        not_before=not_before,
        inputs=frozenset({piece.shard, piece.type.parent}),
    )
