"""The scheduler's index of this api process, which follows the ledger.

Decisions reach it through the entries, inside the transaction that decides, so that several api
processes agree on what is open; what heartbeats say reaches it once a tick, out of the volatile
tables. Used by one thread alone, that of the writer.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from coordinator.api.settings import ApiSettings
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, Attempt, Entry, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.scheduling import Backup, Choice, Index, NoWork, Verdict, Work
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
        self._busy: dict[str, str] = {}
        self._observed: dict[str, float] = {}
        self._proven: set[str] = set()
        self._accepted: set[str] = set()
        self._weights: dict[str, str] = {}
        self._children: dict[str, set[str]] = defaultdict(set)
        self._backups: dict[str, str] = {}
        self._holders: dict[str, str] = {}
        self._underway: dict[str, tuple[AssignmentRow, Work]] = {}

    def follow(self, connection: Connection, now: float) -> None:
        """Take in what was decided since the last time, by whatever process."""
        if self._last_entry is None:
            self._load(connection, now)
            return
        while batch := queries.read_entries(connection, after=self._last_entry, limit=_BATCH):
            self._take_in(connection, batch, now)
            self._last_entry = batch[-1].number

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
                    self._drop_worker(worker.worker)

    def choose(
        self, worker: WorkerRow, *, now: float, waits_since: float | None
    ) -> Choice | Backup | NoWork:
        """What this worker, which asks now, gets."""
        self._put_worker(worker, now)
        if worker.draining:
            return NoWork("the operator asked you to take no more work")
        choice = self._index.choose(
            worker.worker,
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
        self._put_worker(asking, now, asks=True)
        verdicts = self._index.why(worker.worker, now=now, limit=limit, after=after)
        able = not (worker.banned or worker.draining)
        answer = self.choose(asking, now=now, waits_since=worker.waits_since) if able else None
        self._put_worker(worker, now)
        return Account(
            answer="" if answer is None else answer.reason,
            speed=expected_speed(worker, self._observed.get(worker.worker)),
            verdicts=verdicts,
        )

    def expected_end(self, now: float) -> float | None:
        """When all work is expected to end; None if some fits nobody here."""
        return self._index.expected_end(now)

    def deserted(self) -> str:
        """Which open assignment every worker here is excluded from, in words; empty: none."""
        return self._index.deserted()

    def _load(self, connection: Connection, now: float) -> None:
        self._last_entry = queries.last_number(connection)
        self._accepted = queries.accepted_specs(connection)
        self._proven = queries.proven_workers(connection)
        self._observed = queries.observed_speeds(connection)
        window = LEASE_INTERVALS * self._settings.heartbeat_seconds
        active = queries.active_workers(connection, since=now - window)
        self._workers = {worker.worker: worker for worker in active}
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
            done |= self._ended(entry)
        if done:
            self._observed |= queries.observed_speeds(connection, done)
        # Workers first: how long work takes depends on who does it.
        for worker in queries.these_workers(connection, workers | (done & self._workers.keys())):
            self._put_worker(worker, now)
        self._refresh(connection, assignments, now)

    def _concerned(self, entry: Entry) -> set[str]:
        """Assignments to look at again; notes what was accepted."""
        found = {row.values["assignment"] for row in entry.rows if "assignment" in row.values}
        for row in entry.rows:
            if row.table == "receipts":
                self._proven.add(row.values["worker"])
                self._accepted.add(row.values["spec"])
                found |= self._children.pop(row.values["spec"], set())
        if "assignment" in entry.facts:
            found.add(str(entry.facts["assignment"]))
        return found

    def _ended(self, entry: Entry) -> set[str]:
        """Workers whose attempts ended, so that no later tick says how fast they were."""
        holders = {
            entry.facts.get("worker") or self._holders.get(row.values["assignment"])
            for row in entry.rows
            if row.table == "attempts" and row.values["state"] not in LIVE
        }
        return {holder for holder in holders if holder is not None}

    def _refresh(self, connection: Connection, ids: Collection[str], now: float) -> None:
        if ids:
            self._put_assignments(connection, queries.these_assignments(connection, ids), now)

    def _put_assignments(
        self, connection: Connection, rows: Sequence[AssignmentRow], now: float
    ) -> None:
        for row in rows:
            self._note_backup(row)
        history = _History(connection, rows)
        for row in rows:
            work = make_work(
                row,
                durable_step=history.durable_step(row),
                ran_out=history.ran_out.get(row.assignment),
                not_before=history.arrives_by(row, self._settings.heartbeat_seconds),
                parent_weights=self._parent_weights(connection, row),
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

    def _put_running(self, row: AssignmentRow, work: Work, attempt: Attempt | None) -> None:
        before = self._holders.pop(row.assignment, None)
        if before is not None and self._busy.get(before) == row.assignment:
            del self._busy[before]
        if attempt is None or row.state not in LIVE:
            self._underway.pop(row.assignment, None)
            self._index.drop_running(row.assignment)
            return
        self._underway[row.assignment] = (row, work)
        self._holders[row.assignment] = attempt.worker
        self._busy[attempt.worker] = row.assignment
        worker = self._workers.get(attempt.worker)
        observed = self._observed.get(attempt.worker)
        self._index.put_running(
            make_running(
                row,
                attempt,
                work=work,
                speed=UNKNOWN_SPEED if worker is None else expected_speed(worker, observed),
                heartbeat_seconds=self._settings.heartbeat_seconds,
                backed_up=row.assignment in self._backups,
            )
        )

    def _observe(self, attempt: Attempt) -> None:
        pace = attempt.steps_per_second
        if pace is not None:
            row, _ = self._underway[attempt.assignment]
            self._observed[attempt.worker] = pace * step_flops(row.spec)

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
            works=worker.worker in self._busy,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            now=now,
        )

    def _drop_worker(self, worker: str) -> None:
        # One that drains takes no more, but how fast it is says when its last work ends.
        if worker not in self._busy:
            self._workers.pop(worker, None)
        self._index.drop_worker(worker)

    def _put_worker(self, worker: WorkerRow, now: float, *, asks: bool = False) -> None:
        heartbeat_seconds = self._settings.heartbeat_seconds
        if not asks and not self._plays_a_part(worker, now):
            self._drop_worker(worker.worker)
            return
        self._workers[worker.worker] = worker
        self._index.put_worker(
            make_candidate(
                worker,
                observed=self._observed.get(worker.worker),
                proven=worker.worker in self._proven,
                trusted=self._settings.trusted,
                busy_until=asks_again_at(worker, heartbeat_seconds=heartbeat_seconds, now=now),
                now=now,
            )
        )


@dataclass(frozen=True)
class Account:
    """Why a worker gets what it gets: what it would be told, and a verdict on each assignment.

    `speed` is what the scheduler expects of it in FLOP/s; `answer` is empty where it may not ask.
    """

    answer: str
    speed: float
    verdicts: list[Verdict]


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


def _ids(rows: Sequence[AssignmentRow]) -> set[str] | None:
    """The ids to ask for one by one; None where it is cheaper to ask for all."""
    return None if len(rows) > _BATCH else {row.assignment for row in rows}
