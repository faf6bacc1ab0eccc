"""The scheduler's index of this api process, which follows the ledger.

Decisions reach it through the entries, inside the transaction that decides, so that several api
processes agree on what is open; what heartbeats say reaches it once a tick, out of the volatile
tables. Used by one thread alone, that of the writer.
"""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from coordinator.api.agenda import Agenda
from coordinator.api.crew import Crew
from coordinator.api.memory import MeasuredMemory
from coordinator.api.settings import ApiSettings
from coordinator.footprint import Footprints
from coordinator.ledger import queries
from coordinator.ledger.queries import Entry, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.scheduling import Backup, Choice, Index, NoWork, Verdict, Work
from protocol.assignments import LIVE
from protocol.specs import StepShape

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
        self._memory = MeasuredMemory()
        self._crew = Crew(self._settings, self._index, self._memory)
        self._agenda = Agenda(self._settings, self._index, self._memory, self._crew)

    def follow(self, connection: Connection, now: float) -> None:
        """Take in what was decided since the last time, by whatever process."""
        if self._last_entry is None:
            self._load(connection, now)
            return
        while batch := queries.read_entries(connection, after=self._last_entry, limit=_BATCH):
            self._take_in(connection, batch, now)
            self._last_entry = batch[-1].number
        if self._memory.is_outdated:
            # Other estimates of memory are other kinds of work, for all of it.
            self.reset()
            self._load(connection, now)

    def refresh(self, connection: Connection, now: float) -> None:
        """Take in what heartbeats told, and forget workers that do not ask any more."""
        self.follow(connection, now)
        since, self._refreshed_at = self._refreshed_at, now
        moved = queries.progressed_attempts(connection, since=since)
        for attempt in moved:
            self._agenda.observe(attempt)
        for worker in queries.seen_workers(connection, since=since):
            self._crew.put(worker, now)
        for attempt in moved:
            self._agenda.move(attempt)
        if now - self._swept_at >= self._settings.heartbeat_seconds:
            self._swept_at = now
            self._crew.sweep(now)

    def choose(
        self, worker: WorkerRow, *, now: float, waits_since: float | None
    ) -> Choice | Backup | NoWork:
        """What this worker, which asks now, gets."""
        self._crew.put(worker, now, asks=not worker.draining)
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
        waiting = self._agenda.num_waiting
        if isinstance(choice, NoWork) and waiting:
            words = f"{choice.reason} ({waiting} more wait for their parent)"
            return NoWork(words, waits=choice.waits)
        return choice

    def why(self, worker: WorkerRow, *, now: float, limit: int, after: str = "") -> "Account":
        """What the scheduler thinks of open assignments for this worker, if it asked now.

        What is expected of the worker stays as it was.
        """
        asking = replace(worker, asked_at=now)
        others = self._crew.others(worker)
        self._crew.put(asking, now, asks=True)
        verdicts = self._index.why(worker.seat, now=now, limit=limit, after=after)
        able = not (worker.banned or worker.draining)
        answer = self.choose(asking, now=now, waits_since=worker.waits_since) if able else None
        for one in (worker, *others):
            self._crew.put(one, now)
        return Account(
            answer="" if answer is None else answer.reason,
            speed=self._crew.speed(worker),
            verdicts=verdicts,
        )

    def foresee(self, worker: WorkerRow, asking: WorkerRow, *, now: float) -> "Foresight":
        """What a worker would get if it asked now, as `asking` says. It stays as it was.

        `worker` is what the ledger holds of it.
        """
        others = self._crew.others(worker)
        choice = self.choose(asking, now=now, waits_since=worker.waits_since)
        for one in (worker, *others):
            self._crew.put(one, now)
        return Foresight(choice, self._crew.speed(asking))

    def footprints(self) -> Footprints:
        """What was measured of memory so far. May be kept: it does not change any more."""
        return self._memory.footprints.copy()

    def has_own_work(self, worker: WorkerRow, *, now: float) -> bool:
        """Whether this worker, which asks now, could go on with its own data."""
        self._crew.put(worker, now)
        return not worker.draining and self._own_work(worker, now) is not None

    def _own_work(self, worker: WorkerRow, now: float) -> Work | None:
        return self._agenda.own_work(worker.worker, self._crew.candidate(worker, now), now)

    def expected_end(self, now: float) -> float | None:
        """When all work is expected to end; None if some fits nobody here."""
        return self._index.expected_end(now)

    def deserted(self) -> str:
        """Which open assignment every worker here is excluded from, in words; empty: none."""
        return self._index.deserted()

    def on_offer(self) -> tuple[StepShape, ...]:
        """The cheapest and the dearest step of the work that is not finished."""
        return self._agenda.steps.ends()

    def _load(self, connection: Connection, now: float) -> None:
        self._last_entry = queries.last_number(connection)
        self._agenda.accepted = queries.accepted_specs(connection)
        self._crew.proven = queries.proven_workers(connection)
        self._crew.observed = queries.observed_speeds(connection)
        self._memory.note_failures(queries.out_of_memory(connection))
        window = LEASE_INTERVALS * self._settings.heartbeat_seconds
        active = queries.active_workers(connection, since=now - window)
        for worker in active:
            self._crew.know(worker)
        self._memory.note_peaks(connection, queries.memory_peaks(connection))
        self._memory.is_outdated = False
        self._agenda.put(connection, queries.all_assignments(connection))
        for worker in active:
            self._crew.put(worker, now)
        self._refreshed_at = now

    def _take_in(self, connection: Connection, entries: list[Entry], now: float) -> None:
        assignments: set[str] = set()
        workers: set[str] = set()
        done: set[str] = set()
        for entry in entries:
            assignments |= self._concerned(entry)
            workers |= {row.values["worker"] for row in entry.rows if row.table == "workers"}
            done |= _ended(connection, entry)
        if done:
            self._crew.observed |= queries.observed_speeds(connection, done)
        failed = {worker for entry in entries for worker in _failed_for_memory(entry)}
        if failed:
            self._memory.note_failures(queries.out_of_memory(connection, failed))
        accepted = {str(entry.facts["assignment"]) for entry in entries if entry.kind == "accept"}
        if accepted:
            self._memory.note_peaks(connection, queries.memory_peaks(connection, accepted))
        # Workers first: how long work takes depends on who does it.
        for worker in queries.these_workers(connection, workers | self._crew.knows(done)):
            self._crew.put(worker, now)
        self._agenda.refresh(connection, assignments)

    def _concerned(self, entry: Entry) -> set[str]:
        """Assignments to look at again; notes what was accepted."""
        found = {row.values["assignment"] for row in entry.rows if "assignment" in row.values}
        for row in entry.rows:
            if row.table == "receipts":
                if row.values["credit"] > 0:
                    self._crew.proven.add(row.values["worker"])
                found |= self._agenda.accept(row.values["spec"])
        if entry.kind == "make":
            found |= self._agenda.accept(str(entry.facts["spec"]))
        if "assignment" in entry.facts:
            found.add(str(entry.facts["assignment"]))
        return found


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


def _ended(connection: Connection, entry: Entry) -> set[str]:
    """Workers whose attempts ended, so that no later tick says how fast they were."""
    ended = (
        queries.find_attempt(connection, row.values["assignment"], row.values["fencing"])
        for row in entry.rows
        if row.table == "attempts" and "state" in row.values and row.values["state"] not in LIVE
    )
    return {attempt.worker for attempt in ended if attempt is not None}


def _failed_for_memory(entry: Entry) -> set[str]:
    """Workers that an entry says ran out of memory."""
    if not any(row.values.get("reason") == "out_of_memory" for row in entry.rows):
        return set()
    return {str(entry.facts["worker"])} if "worker" in entry.facts else set()
