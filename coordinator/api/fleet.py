"""The scheduler's index of this api process, which follows the ledger.

Decisions reach it through the entries, inside the transaction that decides, so that several api
processes agree on what is open; what heartbeats say reaches it once a tick, out of the volatile
tables. Used by one thread alone, that of the writer.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from coordinator.api.onoffer import StepsOnOffer
from coordinator.api.settings import ApiSettings
from coordinator.footprint import Footprints, Peak
from coordinator.ledger import queries
from coordinator.ledger.queries import (
    AssignmentRow,
    Attempt,
    Entry,
    MeasuredAttempt,
    WorkerRow,
)
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.scheduling import Backup, Candidate, Choice, Index, NoWork, Verdict, Work
from coordinator.scheduling.requirements import find_obstacle
from coordinator.workload import (
    asks_again_at,
    expected_speed,
    is_offerable,
    make_candidate,
    make_running,
    make_work,
    plays_a_part,
)
from protocol.assignments import FINAL, LIVE, AssignmentState
from protocol.specs import StepShape
from shared.sizing import step_flops

UNKNOWN_SPEED = 1e9
"""FLOP/s reckoned with for the holder of a lease of whom nothing else is known."""

_BATCH = 500


class Fleet:
    """Open work, work in progress and workers, as of the newest entry that was followed."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget everything, and read it again before the next decision: a commit failed."""
        self._index = Index()
        self._last_entry: int | None = None
        self._refreshed_at = 0.0
        self._swept_at = 0.0
        self._workers: dict[str, WorkerRow] = {}
        self._seats_of: dict[str, set[str]] = defaultdict(set)
        self._busy: dict[str, str] = {}
        self._observed: dict[str, float] = {}
        self._proven: set[str] = set()
        self._footprints = Footprints()
        self._is_outdated = False
        self._out_of_memory: dict[str, list[MeasuredAttempt]] = {}
        self._accepted: set[str] = set()
        self._weights: dict[str, str] = {}
        self._children: dict[str, set[str]] = defaultdict(set)
        self._backups: dict[str, str] = {}
        self._holders: dict[str, str] = {}
        self._underway: dict[str, tuple[AssignmentRow, Work]] = {}
        self._owned: dict[str, dict[str, Work]] = defaultdict(dict)
        self._steps = StepsOnOffer()

    def follow(self, connection: Connection, now: float) -> None:
        """Take in what was decided since the last time, by whatever process."""
        if self._last_entry is None:
            self._load(connection, now)
            return
        while batch := queries.read_entries(connection, after=self._last_entry, limit=_BATCH):
            self._take_in(connection, batch, now)
            self._last_entry = batch[-1].number
        if self._is_outdated:
            # Other estimates of memory are other kinds of work, for all of it.
            self.reset()
            self._load(connection, now)

    def refresh(self, connection: Connection, now: float) -> None:
        """Take in what heartbeats told, and forget workers that do not ask any more."""
        self.follow(connection, now)
        since, self._refreshed_at = self._refreshed_at, now
        moved = queries.progressed_attempts(connection, since=since)
        for attempt in moved:
            self._observe(attempt)
        for worker in queries.seen_workers(connection, since=since):
            self._put_worker(worker, now)
        for attempt in moved:
            row, work = self._underway[attempt.assignment]
            self._put_running(row, work, attempt)
        if now - self._swept_at >= self._settings.heartbeat_seconds:
            self._swept_at = now
            for worker in list(self._workers.values()):
                if not self._plays_a_part(worker, now):
                    self._drop_worker(worker)

    def choose(
        self, worker: WorkerRow, *, now: float, waits_since: float | None
    ) -> Choice | Backup | NoWork:
        """What this worker, which asks now, gets."""
        self._put_worker(worker, now, asks=not worker.draining)
        if worker.draining:
            return NoWork("the operator asked you to take no more work")
        own = self._own_work(worker, now)
        if own is not None:
            return Choice(own.assignment, "it is on your own data, which nobody else has")
        choice = self._index.choose(
            worker.seat,
            now=now,
            waits_since=waits_since,
            patience_seconds=LEASE_INTERVALS * self._settings.heartbeat_seconds,
        )
        waiting = sum(map(len, self._children.values()))
        if isinstance(choice, NoWork) and waiting:
            words = f"{choice.reason} ({waiting} more wait for their parent)"
            return NoWork(words, waits=choice.waits)
        return choice

    def why(self, worker: WorkerRow, *, now: float, limit: int, after: str = "") -> "Account":
        """What the scheduler thinks of open assignments for this worker, if it asked now.

        What is expected of the worker stays as it was.
        """
        asking = replace(worker, asked_at=now)
        others = self._other_devices(worker)
        self._put_worker(asking, now, asks=True)
        verdicts = self._index.why(worker.seat, now=now, limit=limit, after=after)
        able = not (worker.banned or worker.draining)
        answer = self.choose(asking, now=now, waits_since=worker.waits_since) if able else None
        for one in (worker, *others):
            self._put_worker(one, now)
        return Account(
            answer="" if answer is None else answer.reason,
            speed=expected_speed(worker, self._observed.get(worker.seat)),
            verdicts=verdicts,
        )

    def foresee(self, worker: WorkerRow, asking: WorkerRow, *, now: float) -> "Foresight":
        """What a worker would get if it asked now, as `asking` says. It stays as it was.

        `worker` is what the ledger holds of it.
        """
        others = self._other_devices(worker)
        choice = self.choose(asking, now=now, waits_since=worker.waits_since)
        for one in (worker, *others):
            self._put_worker(one, now)
        return Foresight(choice, expected_speed(asking, self._observed.get(worker.seat)))

    def footprints(self) -> Footprints:
        """What was measured of memory so far. May be kept: it does not change any more."""
        return self._footprints.copy()

    def has_own_work(self, worker: WorkerRow, *, now: float) -> bool:
        """Whether this worker, which asks now, could go on with its own data."""
        self._put_worker(worker, now)
        return not worker.draining and self._own_work(worker, now) is not None

    def _own_work(self, worker: WorkerRow, now: float) -> Work | None:
        """The first open assignment on the worker's own data that it can take now."""
        candidate = self._candidate(worker, now)
        for _, work in sorted(self._owned.get(worker.worker, {}).items()):
            if find_obstacle(work, candidate, now=now) is None:
                return work
        return None

    def expected_end(self, now: float) -> float | None:
        """When all work is expected to end; None if some fits nobody here."""
        return self._index.expected_end(now)

    def deserted(self) -> str:
        """Which open assignment every worker here is excluded from, in words; empty: none."""
        return self._index.deserted()

    def on_offer(self) -> tuple[StepShape, ...]:
        """The cheapest and the dearest step of the work that is not finished."""
        return self._steps.ends()

    def _load(self, connection: Connection, now: float) -> None:
        self._last_entry = queries.last_number(connection)
        self._accepted = queries.accepted_specs(connection)
        self._proven = queries.proven_workers(connection)
        self._observed = queries.observed_speeds(connection)
        self._note_failures(queries.out_of_memory(connection))
        window = LEASE_INTERVALS * self._settings.heartbeat_seconds
        active = queries.active_workers(connection, since=now - window)
        for worker in active:
            self._know(worker)
        self._note_peaks(connection, queries.memory_peaks(connection))
        self._is_outdated = False
        self._put_assignments(connection, queries.all_assignments(connection), now)
        for worker in active:
            self._put_worker(worker, now)
        self._refreshed_at = now

    def _take_in(self, connection: Connection, entries: list[Entry], now: float) -> None:
        assignments: set[str] = set()
        workers: set[str] = set()
        done: set[str] = set()
        for entry in entries:
            assignments |= self._concerned(entry)
            workers |= {row.values["worker"] for row in entry.rows if row.table == "workers"}
            done |= self._ended(connection, entry)
        if done:
            self._observed |= queries.observed_speeds(connection, done)
        failed = {worker for entry in entries for worker in _failed_for_memory(entry)}
        if failed:
            self._note_failures(queries.out_of_memory(connection, failed))
        accepted = {str(entry.facts["assignment"]) for entry in entries if entry.kind == "accept"}
        if accepted:
            self._note_peaks(connection, queries.memory_peaks(connection, accepted))
        # Workers first: how long work takes depends on who does it.
        for worker in queries.these_workers(connection, workers | (done & self._seats_of.keys())):
            self._put_worker(worker, now)
        self._refresh(connection, assignments, now)

    def _concerned(self, entry: Entry) -> set[str]:
        """Assignments to look at again; notes what was accepted."""
        found = {row.values["assignment"] for row in entry.rows if "assignment" in row.values}
        for row in entry.rows:
            if row.table == "receipts":
                if row.values["credit"] > 0:
                    self._proven.add(row.values["worker"])
                found |= self._accept(row.values["spec"])
        if entry.kind == "make":
            found |= self._accept(str(entry.facts["spec"]))
        if "assignment" in entry.facts:
            found.add(str(entry.facts["assignment"]))
        return found

    def _accept(self, spec: str) -> set[str]:
        """Notes that a spec has its checkpoint; the assignments that waited for it."""
        self._accepted.add(spec)
        return self._children.pop(spec, set())

    def _ended(self, connection: Connection, entry: Entry) -> set[str]:
        """Workers whose attempts ended, so that no later tick says how fast they were."""
        ended = (
            queries.find_attempt(connection, row.values["assignment"], row.values["fencing"])
            for row in entry.rows
            if row.table == "attempts" and "state" in row.values and row.values["state"] not in LIVE
        )
        return {attempt.worker for attempt in ended if attempt is not None}

    def _refresh(self, connection: Connection, ids: Collection[str], now: float) -> None:
        if ids:
            self._put_assignments(connection, queries.these_assignments(connection, ids), now)

    def _put_assignments(
        self, connection: Connection, rows: Sequence[AssignmentRow], now: float
    ) -> None:
        for row in rows:
            self._note_backup(row)
            self._steps.put(row)
        history = _History(connection, rows)
        for row in rows:
            work = make_work(
                row,
                durable_step=history.durable_step(row),
                ran_out=history.ran_out.get(row.assignment),
                not_before=history.arrives_by(row, self._settings.heartbeat_seconds),
                parent_weights=self._parent_weights(connection, row),
                footprints=self._footprints,
            )
            self._put_open(row, work)
            self._put_running(row, work, history.held.get(row.assignment))
        # An original is offered, and backed up, depending on how its backup stands.
        originals = {row.backup_of for row in rows if row.backup_of is not None}
        self._refresh(connection, originals - {row.assignment for row in rows}, now)

    def _parent_weights(self, connection: Connection, row: AssignmentRow) -> str | None:
        parent = row.spec.parent
        if parent is None or parent not in self._accepted:
            return None
        if parent not in self._weights:
            held = queries.accepted_of(connection, parent)
            assert held is not None, f"{parent} was accepted without a checkpoint"
            self._weights[parent] = held.manifest.blob("model.safetensors").digest
        return self._weights[parent]

    def _put_open(self, row: AssignmentRow, work: Work) -> None:
        if row.owner is not None:
            # Nobody else could do it: in the index it would stand in the way of others' work.
            self._put_owned(row, work)
            return
        # A backup is offered when it is made, to whom it was made for, and never again. An original
        # that came back is offered even while its backup lives: that may be a straggler, too.
        if row.backup_of is None and is_offerable(row, accepted=self._accepted):
            self._index.put_work(work)
            return
        self._index.drop_work(row.assignment)
        parent = row.spec.parent
        if parent is None or parent in self._accepted:
            return
        waits = row.state is AssignmentState.OPEN and row.backup_of is None
        (self._children[parent].add if waits else self._children[parent].discard)(row.assignment)

    def _put_owned(self, row: AssignmentRow, work: Work) -> None:
        owned = self._owned[work.owner or ""]
        owned.pop(row.assignment, None)
        if is_offerable(row, accepted=self._accepted):
            owned[row.assignment] = work

    def _put_running(self, row: AssignmentRow, work: Work, attempt: Attempt | None) -> None:
        before = self._holders.pop(row.assignment, None)
        if before is not None and self._busy.get(before) == row.assignment:
            del self._busy[before]
        if attempt is None or row.state not in LIVE:
            self._underway.pop(row.assignment, None)
            self._index.drop_running(row.assignment)
            return
        self._underway[row.assignment] = (row, work)
        self._holders[row.assignment] = attempt.seat
        self._busy[attempt.seat] = row.assignment
        worker = self._workers.get(attempt.seat)
        observed = self._observed.get(attempt.seat)
        self._index.put_running(
            make_running(
                row,
                attempt,
                work=work,
                speed=UNKNOWN_SPEED if worker is None else expected_speed(worker, observed),
                heartbeat_seconds=self._settings.heartbeat_seconds,
                backed_up=row.assignment in self._backups or row.owner is not None,
            )
        )

    def _note_failures(self, failed: Sequence[MeasuredAttempt]) -> None:
        for seat in {attempt.seat for attempt in failed}:
            self._out_of_memory[seat] = [one for one in failed if one.seat == seat]

    def _note_peaks(self, connection: Connection, measured: Sequence[MeasuredAttempt]) -> None:
        devices = {
            worker.seat: worker.capability.device
            for worker in queries.these_workers(connection, {one.worker for one in measured})
        }
        for one in measured:
            device = devices.get(one.seat)
            if device is not None and one.peak_memory_bytes is not None:
                peak = Peak(one.worker, device, one.spec, one.peak_memory_bytes)
                self._is_outdated |= self._footprints.note(peak)

    def _ran_out(self, worker: WorkerRow) -> frozenset[tuple[int, int]]:
        device = worker.capability.device
        return frozenset(
            (self._footprints.memory_bytes(one.spec, device), one.free_memory_bytes)
            for one in self._out_of_memory.get(worker.seat, ())
        )

    def _observe(self, attempt: Attempt) -> None:
        pace = attempt.steps_per_second
        if pace is not None:
            row, _ = self._underway[attempt.assignment]
            self._observed[attempt.seat] = pace * step_flops(row.spec)

    def _note_backup(self, row: AssignmentRow) -> None:
        if row.backup_of is None:
            return
        if row.state in FINAL:
            self._backups.pop(row.backup_of, None)
        else:
            self._backups[row.backup_of] = row.assignment

    def _plays_a_part(self, worker: WorkerRow, now: float) -> bool:
        return plays_a_part(
            worker,
            works=worker.seat in self._busy,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            now=now,
        )

    def _know(self, worker: WorkerRow) -> None:
        self._workers[worker.seat] = worker
        self._seats_of[worker.worker].add(worker.seat)

    def _drop_worker(self, worker: WorkerRow) -> None:
        # One that drains takes no more, but how fast it is says when its last work ends.
        if worker.seat not in self._busy and self._workers.pop(worker.seat, None) is not None:
            self._seats_of[worker.worker].discard(worker.seat)
            if not self._seats_of[worker.worker]:
                del self._seats_of[worker.worker]
        self._index.drop_worker(worker.seat)

    def _other_devices(self, worker: WorkerRow) -> list[WorkerRow]:
        """What is known of the worker's other devices."""
        seats = self._seats_of.get(worker.worker, set()) - {worker.seat}
        return [self._workers[seat] for seat in seats]

    def _claim(self, worker: WorkerRow) -> tuple[bool, float, int]:
        return worker.seat in self._busy, worker.asked_at or 0.0, worker.device_number

    def _put_worker(self, worker: WorkerRow, now: float, *, asks: bool = False) -> None:
        # A newcomer holds one lease at a time, so it counts once: as what works, or asked last.
        rivals = () if worker.worker in self._proven else self._other_devices(worker)
        counts = all(self._claim(other) < self._claim(worker) for other in rivals)
        if not (asks or (counts and self._plays_a_part(worker, now))):
            self._drop_worker(worker)
            return
        for other in rivals:
            if other.seat not in self._busy:
                self._drop_worker(other)
        self._know(worker)
        self._index.put_worker(self._candidate(worker, now))

    def _candidate(self, worker: WorkerRow, now: float) -> Candidate:
        heartbeat_seconds = self._settings.heartbeat_seconds
        candidate = make_candidate(
            worker,
            observed=self._observed.get(worker.seat),
            proven=worker.worker in self._proven,
            trusted=self._settings.trusted,
            busy_until=asks_again_at(worker, heartbeat_seconds=heartbeat_seconds, now=now),
            now=now,
        )
        return replace(candidate, ran_out=self._ran_out(worker))


@dataclass(frozen=True)
class Account:
    """Why a worker gets what it gets: what it would be told, and a verdict on each assignment.

    `speed` is what the scheduler expects of it in FLOP/s; `answer` is empty where it may not ask.
    """

    answer: str
    speed: float
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Foresight:
    """What a worker would get, and what the scheduler expects of it in FLOP/s."""

    choice: Choice | Backup | NoWork
    speed: float


class _History:
    """What else the ledger holds of some assignments."""

    def __init__(self, connection: Connection, rows: Sequence[AssignmentRow]) -> None:
        waiting = [row for row in rows if row.state is AssignmentState.OPEN]
        living = [row for row in rows if row.state in LIVE]
        originals = {row.backup_of for row in living if row.backup_of is not None}
        open_ids, live_ids = _ids(waiting), _ids(living)
        both = None if open_ids is None or live_ids is None else {*open_ids, *live_ids, *originals}
        self._durable = queries.durable_steps(connection, both)
        self._arriving = queries.arriving_checkpoints(connection, open_ids)
        self.ran_out = queries.ran_out_of_memory(connection, both)
        self.held = {one.assignment: one for one in queries.live_attempts(connection, live_ids)}

    def durable_step(self, row: AssignmentRow) -> int:
        """The step of the newest checkpoint from which it, or its original, can go on."""
        own = self._durable.get(row.assignment, 0)
        return max(own, self._durable.get(row.backup_of, 0)) if row.backup_of else own

    def arrives_by(self, row: AssignmentRow, heartbeat_seconds: float) -> float:
        """Until when to wait for a newer checkpoint that its last holder named; 0: not at all."""
        step, announced_at = self._arriving.get(row.assignment, (0, 0.0))
        is_newer = step > self._durable.get(row.assignment, 0)
        return announced_at + heartbeat_seconds if is_newer else 0.0


def _failed_for_memory(entry: Entry) -> set[str]:
    """Workers that an entry says ran out of memory."""
    if not any(row.values.get("reason") == "out_of_memory" for row in entry.rows):
        return set()
    return {str(entry.facts["worker"])} if "worker" in entry.facts else set()


def _ids(rows: Sequence[AssignmentRow]) -> set[str] | None:
    """The ids to ask for one by one; None where it is cheaper to ask for all."""
    return None if len(rows) > _BATCH else {row.assignment for row in rows}
