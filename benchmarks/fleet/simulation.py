"""Discrete events in virtual time: volunteers ask, fetch, train, fall silent and hand in.

Every change of an assignment goes through `coordinator.lifecycle`. What is simulated: heartbeats
that renew while training progresses, leases that run out, resumption from the newest durable
checkpoint, fetching of what a machine has not cached, uploads beside the next training, stragglers,
stalls, machines that leave politely or silently, and machines that join.

What is left out: the coordinator's own time and bandwidth (it answers at once and takes any number
of uploads), failures of trainers and rejected submissions, machines that are used by their owner or
come back, peers that serve each other, checkpoints that are refused, and clocks that differ.
Checkpoints cost no training time; speeds are constant but for stalls.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.pieces import SHARD_BYTES, Piece
from benchmarks.fleet.policies import Policy, Underway
from benchmarks.fleet.state import Attempt, Row, Tally, Trouble, Volunteer
from coordinator import lifecycle
from coordinator.lifecycle import Assignment, Holder, Refused
from coordinator.scheduling import Backup, Candidate, Choice, NoWork
from protocol.assignments import AssignmentState

ACKNOWLEDGE_SECONDS = 2.0
VERIFY_SECONDS = 60.0
MIN_DURABLE_SECONDS = 600.0
UPLOADS_PER_DURABLE = 10.0
MAX_RETRY_HEARTBEATS = 4
JOIN_BURST_SECONDS = 60.0


@dataclass
class Simulation:
    """One run of a fleet under one policy."""

    pieces: list[Piece]
    fleet: list[Machine]
    policy: Policy
    random: random.Random
    heartbeat_seconds: float = 120.0
    trouble: Trouble = field(default_factory=Trouble)
    tally: Tally = field(default_factory=Tally)
    now: float = 0.0

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0
        self._rows = {
            piece.name: Row(Assignment(assignment=piece.name), piece) for piece in self.pieces
        }
        for piece in self.pieces:
            self.policy.put_open(piece, piece.type.flops, 0.0)
        for machine in self.fleet:
            volunteer = Volunteer(machine, machine.capability.flops_per_second)
            machine.cached = set()
            burst = self.random.uniform(0.0, JOIN_BURST_SECONDS)
            if machine.joins_at + burst < machine.leaves_at:
                self._at(machine.joins_at + burst, self._ask, volunteer)
                if machine.leaves_at < math.inf:
                    self._at(machine.leaves_at, self._leave, volunteer)

    def run(self, *, stop_at: float, progress: Callable[["Simulation"], None]) -> Tally:
        """Runs until all is accepted or the virtual time `stop_at`."""
        while self._events and self.tally.accepted < len(self.pieces):
            self.now, _, event, arguments = heapq.heappop(self._events)
            if self.now > stop_at:
                break
            self.tally.events += 1
            if self.tally.events % 20_000 == 0:
                progress(self)
            event(*arguments)
        if self.tally.accepted == len(self.pieces):
            self.tally.makespan = self.now
        ends = (r.attempt.ends_at() for r in self._rows.values() if r.attempt is not None)
        self.tally.latest_end = max(ends, default=self.now)
        return self.tally

    def _at(self, when: float, event: Callable[..., None], *arguments: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event, arguments))

    # What a volunteer does

    def _ask(self, volunteer: Volunteer) -> None:
        if volunteer.gone:
            return
        if volunteer.uncollected > lifecycle.MAX_UNCOLLECTED:
            volunteer.blocked = True
            return
        worker = volunteer.machine.worker
        self.policy.put_worker(self._candidate(volunteer, self.now))
        answer = self.policy.choose(worker, self.now, volunteer.waits_since)
        if isinstance(answer, NoWork):
            self._wait(volunteer, answer)
            return
        volunteer.waits_since, volunteer.retries = None, 0
        if isinstance(answer, Choice):
            self._offer(volunteer, self._rows[answer.assignment])
        else:
            self._offer(volunteer, self._make_backup(answer))

    def _wait(self, volunteer: Volunteer, answer: NoWork) -> None:
        if answer.waits and volunteer.waits_since is None:
            volunteer.waits_since = self.now
        pause = self.heartbeat_seconds / 2 * min(2**volunteer.retries, MAX_RETRY_HEARTBEATS * 2)
        volunteer.retries = min(volunteer.retries + 1, 8)
        self.policy.put_worker(self._candidate(volunteer, self.now + pause))
        self._at(self.now + pause, self._ask, volunteer)

    def _offer(self, volunteer: Volunteer, row: Row) -> None:
        machine, piece = volunteer.machine, row.piece
        row.standing = _taken(
            lifecycle.offer(
                row.standing,
                worker=machine.worker,
                now=self.now,
                heartbeat_seconds=self.heartbeat_seconds,
            )
        )
        self.tally.leases += 1
        base = max(row.durable, row.twin.durable if row.twin is not None else 0.0)
        fetched = self._bytes_to_fetch(machine, piece, base)
        self.tally.fetched_bytes += fetched
        attempt = Attempt(
            row=row,
            machine=machine,
            fencing=row.standing.fencing,
            offered_at=self.now,
            base=base,
            starts_at=self.now + ACKNOWLEDGE_SECONDS + fetched / machine.bandwidth,
            durable=base,
            durable_at=self.now,
            predicted=self.now + (piece.type.flops - base) / volunteer.speed,
        )
        row.attempt, row.durable, volunteer.attempt = attempt, base, attempt
        if self.random.random() < self.trouble.stall_share:
            begins = self.random.uniform(attempt.starts_at, attempt.ends_at())
            attempt.stall = (begins, self.random.expovariate(1 / self.trouble.stall_seconds))
        self._report(row)
        self._at(self.now + ACKNOWLEDGE_SECONDS, self._acknowledge, volunteer, attempt)

    def _bytes_to_fetch(self, machine: Machine, piece: Piece, base: float) -> float:
        needed = {piece.shard: SHARD_BYTES, piece.type.parent: piece.type.expert_bytes}
        missing = sum(size for digest, size in needed.items() if digest not in machine.cached)
        machine.cached.update(needed)
        return float(missing + (piece.type.checkpoint_bytes if base else 0))

    def _acknowledge(self, volunteer: Volunteer, attempt: Attempt) -> None:
        if volunteer.gone or attempt.ended:
            return
        attempt.row.standing = _taken(
            lifecycle.acknowledge(
                attempt.row.standing,
                _holder(attempt),
                now=self.now,
                heartbeat_seconds=self.heartbeat_seconds,
            )
        )
        self._at(self.now + self.heartbeat_seconds, self._beat, volunteer, attempt)
        self._at(attempt.ends_at(), self._finish, volunteer, attempt)

    def _beat(self, volunteer: Volunteer, attempt: Attempt) -> None:
        if volunteer.gone:
            return
        if not attempt.ended and lifecycle.expired(attempt.row.standing, self.now):
            self._expire(attempt)
        if attempt.ended:
            if not attempt.submitted:
                self._stop(volunteer, attempt)
            return
        self._at(self.now + self.heartbeat_seconds, self._beat, volunteer, attempt)
        begins, length = attempt.stall
        still = begins + self.heartbeat_seconds <= self.now < begins + length
        if still is not attempt.stands_still:
            attempt.stands_still = still
            self._report(attempt.row)
        if still:
            return
        attempt.row.standing = _taken(
            lifecycle.renew(
                attempt.row.standing,
                _holder(attempt),
                now=self.now,
                heartbeat_seconds=self.heartbeat_seconds,
            )
        )
        self._progress(volunteer, attempt)

    def _progress(self, volunteer: Volunteer, attempt: Attempt) -> None:
        machine, row = attempt.machine, attempt.row
        trained = attempt.done(self.now) - attempt.base
        if not attempt.measured and trained > 0.0:
            attempt.measured = True
            volunteer.speed = machine.real_speed
        left = row.piece.type.flops - attempt.done(self.now)
        predicted = self.now + left / volunteer.speed
        upload = row.piece.type.checkpoint_bytes / machine.bandwidth
        durable_due = max(MIN_DURABLE_SECONDS, UPLOADS_PER_DURABLE * upload)
        durable = self.now - attempt.durable_at >= durable_due and trained > 0.0
        if durable:
            row.durable = attempt.durable = attempt.done(self.now - upload)
            attempt.durable_at = self.now
        if durable or abs(predicted - attempt.predicted) > 0.02 * (predicted - attempt.offered_at):
            attempt.predicted = predicted
            self._report(row)

    def _finish(self, volunteer: Volunteer, attempt: Attempt) -> None:
        if volunteer.gone or attempt.ended:
            return
        row, machine = attempt.row, attempt.machine
        if lifecycle.expired(row.standing, self.now):
            self._expire(attempt)
            self._ask(volunteer)
            return
        row.standing = _taken(
            lifecycle.submit(
                row.standing,
                _holder(attempt),
                now=self.now,
                heartbeat_seconds=self.heartbeat_seconds,
            )
        )
        attempt.ended = attempt.submitted = True
        self.policy.drop_running(row.standing.assignment)
        volunteer.uncollected += 1
        upload = row.piece.type.expert_bytes / machine.bandwidth
        self._at(self.now + upload, self._collect, volunteer, attempt)
        self._ask(volunteer)

    def _leave(self, volunteer: Volunteer) -> None:
        worker = volunteer.machine.worker
        attempt = volunteer.attempt
        volunteer.gone = True
        if attempt is None or attempt.ended:
            self._at(self.now + 3 * self.heartbeat_seconds, self.policy.drop_worker, worker)
        elif volunteer.machine.polite:
            released = lifecycle.release(attempt.row.standing, _holder(attempt), now=self.now)
            self.policy.drop_worker(worker)
            self._come_back(attempt, _taken(released))
        else:
            self._at(_expiry(attempt.row), self._expire, attempt)

    # What happens to an assignment

    def _collect(self, volunteer: Volunteer, attempt: Attempt) -> None:
        row = attempt.row
        waits = row.standing.state is AssignmentState.SUBMITTED
        if volunteer.gone:
            if waits:
                self._at(_expiry(row), self._expire, attempt)
            return
        if waits:
            row.standing = _taken(lifecycle.collected(row.standing, fencing=attempt.fencing))
            self._at(self.now + VERIFY_SECONDS, self._accept, volunteer, attempt)
        volunteer.uncollected -= 1
        if volunteer.blocked:
            volunteer.blocked = False
            self._ask(volunteer)

    def _accept(self, volunteer: Volunteer, attempt: Attempt) -> None:
        row = attempt.row
        if row.standing.state is not AssignmentState.SUBMITTED:
            return
        row.standing = _taken(lifecycle.accept(row.standing, fencing=attempt.fencing))
        row.attempt = None
        self.tally.accepted += 1
        self.tally.trained += row.piece.type.flops
        volunteer.proven = True
        twin = row.twin
        if twin is not None:
            self._cancel(twin)
            row.twin = twin.twin = None

    def _cancel(self, row: Row) -> None:
        if row.standing.state is AssignmentState.OPEN:
            self.policy.drop_open(row.standing.assignment)
        row.standing = _taken(lifecycle.cancel(row.standing))
        if row.attempt is not None:
            self.tally.twice += row.attempt.done(self.now) - row.attempt.base
            row.attempt.ended = True
            row.attempt = None
            self.policy.drop_running(row.standing.assignment)

    def _expire(self, attempt: Attempt) -> None:
        row = attempt.row
        if row.attempt is not attempt or row.standing.fencing != attempt.fencing:
            return
        if not lifecycle.expired(row.standing, self.now):
            if row.standing.expires_at is not None:
                self._at(_expiry(row), self._expire, attempt)
            return
        self.tally.expired += 1
        self.policy.drop_worker(attempt.machine.worker)
        self._come_back(attempt, _taken(lifecycle.expire(row.standing, now=self.now)))

    def _come_back(self, attempt: Attempt, standing: Assignment) -> None:
        row = attempt.row
        reached = attempt.done(min(self.now, attempt.machine.leaves_at))
        self.tally.lost += max(0.0, reached - attempt.durable)
        row.standing, row.attempt, attempt.ended = standing, None, True
        self.policy.drop_running(standing.assignment)
        if row.is_backup:
            original = row.twin
            row.standing = _taken(lifecycle.cancel(standing))
            if original is not None:
                original.twin = None
                original.durable = max(original.durable, row.durable)
                self._open_or_report(original)
        else:
            if row.twin is not None:
                row.durable = max(row.durable, row.twin.durable)
            self._open_or_report(row)

    def _open_or_report(self, row: Row) -> None:
        if row.standing.state is AssignmentState.OPEN:
            left = row.piece.type.flops - row.durable
            self.policy.put_open(row.piece, left, row.standing.not_before)
        elif row.attempt is not None and not row.attempt.ended:
            self._report(row)

    def _stop(self, volunteer: Volunteer, attempt: Attempt) -> None:
        begins, length = attempt.stall
        free_at = begins + length if begins <= self.now < begins + length else self.now
        self._at(free_at, self._ask, volunteer)

    def _make_backup(self, answer: Backup) -> Row:
        original = self._rows[answer.of]
        if answer.replaces is not None:
            self._cancel(self._rows[answer.replaces])
        name = f"{answer.of}+{self.tally.backups}"
        row = Row(Assignment(assignment=name), original.piece, is_backup=True)
        row.durable, row.twin, original.twin = original.durable, original, row
        self._rows[name] = row
        self.tally.backups += 1
        self._report(original)
        return row

    def _report(self, row: Row) -> None:
        attempt = row.attempt
        if attempt is None:
            raise AssertionError(f"{row.standing.assignment} runs nowhere")
        self.policy.put_running(
            row.piece,
            row.piece.type.flops - row.durable,
            Underway(
                assignment=row.standing.assignment,
                worker=attempt.machine.worker,
                finish=attempt.predicted,
                stalls_at=self.now if attempt.stands_still else math.inf,
                backed_up=row.twin is not None,
                backup_of=row.twin.standing.assignment if row.is_backup and row.twin else None,
            ),
        )

    def _candidate(self, volunteer: Volunteer, busy_until: float) -> Candidate:
        machine = volunteer.machine
        return Candidate(
            worker=machine.worker,
            capability=machine.capability,
            speed=volunteer.speed,
            busy_until=busy_until,
            proven=volunteer.proven,
            cached=frozenset(machine.cached),
        )


def _holder(attempt: Attempt) -> Holder:
    return Holder(worker=attempt.machine.worker, fencing=attempt.fencing)


def _taken(outcome: Assignment | Refused) -> Assignment:
    if isinstance(outcome, Refused):
        raise AssertionError(f"the lifecycle refused: {outcome.message}")
    return outcome


def _expiry(row: Row) -> float:
    return math.inf if row.standing.expires_at is None else row.standing.expires_at
