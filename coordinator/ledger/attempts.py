"""Attempts: one worker's try at an assignment under one fencing number, and its progress."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, literal_column, select

from coordinator.credit import Attempted, Try
from coordinator.ledger.assignments import parse_spec
from coordinator.ledger.entries import Row, changed
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.tables import IS_LIVE, assignments, attempts, progress, specs
from shared.sizing import step_flops

MIN_OBSERVED_STEPS = 5
"""Steps after which an attempt says how fast its worker is; the first ones fetch and compile."""


@dataclass(frozen=True)
class Attempt:
    """One worker's try under one fencing number, with the progress that its heartbeats told.

    `resumed_from` is the worker whose training checkpoint, of `resumed_step`, came with the offer.
    `started_at` is when it was acknowledged, or offered before that.
    """

    assignment: str
    fencing: int
    worker: str
    state: str
    free_memory_bytes: int
    offer_reason: str
    offered_at: float
    reason: str
    resumed_from: str | None
    resumed_step: int
    step: int
    loss: float | None
    tokens_per_second: float
    started_at: float
    progressed_at: float

    @property
    def foreign_author(self) -> str | None:
        """Another worker, on whose checkpoint this attempt was built."""
        return self.resumed_from if self.resumed_from != self.worker else None

    @property
    def steps_per_second(self) -> float | None:
        """What it reached by our clock; None before MIN_OBSERVED_STEPS."""
        steps, seconds = self.step - self.resumed_step, self.progressed_at - self.started_at
        return steps / seconds if steps >= MIN_OBSERVED_STEPS and seconds > 0 else None


def progressed_attempts(connection: Connection, *, since: float) -> tuple[Attempt, ...]:
    """Live attempts whose trainer got further at `since` or later."""
    return tuple(map(_attempt, _PROGRESSED.all(connection, since=since)))


def find_attempt(connection: Connection, assignment: str, fencing: int) -> Attempt | None:
    """The attempt under this fencing number."""
    row = _BY_KEY.one(connection, assignment=assignment, fencing=fencing)
    return None if row is None else _attempt(row)


def live_attempts(connection: Connection, ids: Iterable[str] | None = None) -> tuple[Attempt, ...]:
    """The attempts that hold a lease, at most one for each assignment and each worker.

    `ids` are the assignments that are meant; None: all.
    """
    if ids is not None:
        rows = (row for one in ids for row in _LIVE_OF.all(connection, assignment=one))
        return tuple(map(_attempt, rows))
    query = _SELECT.where(IS_LIVE).order_by(attempts.c.assignment)
    return tuple(map(_attempt, connection.execute(query)))


def live_lease_of(connection: Connection, worker: str) -> Attempt | None:
    """The lease or offer that a worker holds."""
    row = _LIVE_OF_WORKER.one(connection, worker=worker)
    return None if row is None else _attempt(row)


def newest_attempts(connection: Connection, ids: Iterable[str]) -> dict[str, Attempt]:
    """Assignment to the attempt under its newest fencing number, for these assignments."""
    query = _SELECT.join(
        assignments,
        and_(
            assignments.c.assignment == attempts.c.assignment,
            assignments.c.fencing == attempts.c.fencing,
        ),
    ).where(attempts.c.assignment.in_(list(ids)))
    return {row.assignment: _attempt(row) for row in connection.execute(query)}


def ran_out_of_memory(
    connection: Connection, ids: Iterable[str] | None = None
) -> dict[str, dict[str, int]]:
    """Assignment to worker to the most free memory with which it ran out there, in bytes."""
    found: dict[str, dict[str, int]] = {}
    rows = (
        connection.execute(_RAN_OUT)
        if ids is None
        else (row for one in ids for row in _RAN_OUT_OF.all(connection, assignment=one))
    )
    for row in rows:
        of_one = found.setdefault(row.assignment, {})
        of_one[row.worker] = max(of_one.get(row.worker, 0), row.free_memory_bytes)
    return found


def failed_by(connection: Connection, assignment: str, reason: str) -> list[str]:
    """Workers of the attempts that ended with this typed error, one for each attempt."""
    query = select(attempts.c.worker).where(
        attempts.c.assignment == assignment,
        attempts.c.state == "released",
        attempts.c.reason == reason,
    )
    return list(connection.execute(query).scalars())


def tries(connection: Connection, spec: str) -> Mapping[Attempted, Try]:
    """Every attempt at a spec, a backup's too, as what decides who did which steps."""
    query = (
        select(attempts)
        .join(assignments, assignments.c.assignment == attempts.c.assignment)
        .where(assignments.c.spec == spec)
    )
    return {
        (row.assignment, row.fencing): Try(
            row.worker,
            None
            if row.resumed_assignment is None
            else (row.resumed_assignment, row.resumed_fencing),
            row.resumed_step,
        )
        for row in connection.execute(query)
    }


def observed_speeds(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, float]:
    """Worker to the FLOP/s that its newest attempts reached by our clock; `ids` None: of all.

    Those attempts count that got some steps further since they were acknowledged.
    """
    rows = (
        connection.execute(_PACES.order_by(attempts.c.offered_at))
        if ids is None
        else filter(None, (_PACE_OF.one(connection, worker=worker) for worker in ids))
    )
    return {row.worker: step_flops(parse_spec(row.body)) * row.steps / row.seconds for row in rows}


def ended(assignment: str, fencing: int, *, state: str, reason: str, now: float) -> Row:
    """The attempt moves on to `state`; a state that is not live frees its worker."""
    return changed(
        attempts, assignment=assignment, fencing=fencing, state=state, reason=reason, ended_at=now
    )


_SAME = and_(
    progress.c.assignment == attempts.c.assignment, progress.c.fencing == attempts.c.fencing
)

_SELECT = select(
    attempts,
    progress.c.step,
    progress.c.loss,
    progress.c.tokens_per_second,
    progress.c.started_at,
    progress.c.progressed_at,
).join(progress, _SAME)


_BY_KEY = Prepared(
    _SELECT.where(
        attempts.c.assignment == bindparam("assignment"),
        attempts.c.fencing == bindparam("fencing"),
    )
)
_LIVE_OF = Prepared(_SELECT.where(IS_LIVE, attempts.c.assignment == bindparam("assignment")))
_LIVE_OF_WORKER = Prepared(_SELECT.where(IS_LIVE, attempts.c.worker == bindparam("worker")))
_RAN_OUT = select(attempts).where(attempts.c.reason == "out_of_memory")
_RAN_OUT_OF = Prepared(_RAN_OUT.where(attempts.c.assignment == bindparam("assignment")))


_PACES = (
    select(
        attempts.c.worker,
        (progress.c.step - attempts.c.resumed_step).label("steps"),
        (progress.c.progressed_at - progress.c.started_at).label("seconds"),
        specs.c.body,
    )
    .join(progress, _SAME)
    .join(assignments, assignments.c.assignment == attempts.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
    .where(
        progress.c.step >= attempts.c.resumed_step + literal_column(str(MIN_OBSERVED_STEPS)),
        progress.c.progressed_at > progress.c.started_at,
    )
)
_PACE_OF = Prepared(
    _PACES.where(attempts.c.worker == bindparam("worker"))
    .order_by(attempts.c.offered_at.desc())
    .limit(1)
)
_PROGRESSED = Prepared(_SELECT.where(IS_LIVE, progress.c.progressed_at >= bindparam("since")))


def _attempt(row: Any) -> Attempt:
    return Attempt(
        assignment=row.assignment,
        fencing=row.fencing,
        worker=row.worker,
        state=row.state,
        free_memory_bytes=row.free_memory_bytes,
        offer_reason=row.offer_reason,
        offered_at=row.offered_at,
        reason=row.reason,
        resumed_from=row.resumed_from,
        resumed_step=row.resumed_step,
        step=row.step,
        loss=row.loss,
        tokens_per_second=row.tokens_per_second,
        started_at=row.started_at,
        progressed_at=row.progressed_at,
    )
