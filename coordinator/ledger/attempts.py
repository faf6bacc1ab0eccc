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
from coordinator.seats import seat_of
from coordinator.speeds import observed_speed
from protocol.capability import MAX_DEVICES
from protocol.specs import ExpertSpec
from shared.sizing import step_flops

MIN_OBSERVED_STEPS = 5
"""Steps after which an attempt says how fast its worker is; the first ones fetch and compile."""


@dataclass(frozen=True)
class Attempt:
    """One worker's try under one fencing number, with the progress that its heartbeats told.

    `resumed_from` is the worker whose checkpoint, of `resumed_step`, training went on from: the one
    that came with the offer, until the worker says that it had a later one of its own.
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
    device_number: int = 0

    @property
    def seat(self) -> str:
        """The device of its worker that tries."""
        return seat_of(self.worker, self.device_number)

    @property
    def foreign_author(self) -> str | None:
        """Another worker, on whose checkpoint this attempt was built."""
        return self.resumed_from if self.resumed_from != self.worker else None

    def speed(self, spec: ExpertSpec) -> float | None:
        """The FLOP/s it reached by our clock, but for its start; None before MIN_OBSERVED_STEPS."""
        steps, seconds = self.step - self.resumed_step, self.progressed_at - self.started_at
        if steps < MIN_OBSERVED_STEPS or seconds <= 0:
            return None
        return _speed(spec, steps, seconds, self.tokens_per_second)


def progressed_attempts(connection: Connection, *, since: float) -> tuple[Attempt, ...]:
    """Live attempts whose trainer got further at `since` or later."""
    return tuple(map(_attempt, _PROGRESSED.all(connection, since=since)))


def find_attempt(connection: Connection, assignment: str, fencing: int) -> Attempt | None:
    """The attempt under this fencing number."""
    row = _BY_KEY.one(connection, assignment=assignment, fencing=fencing)
    return None if row is None else _attempt(row)


def live_attempts(connection: Connection, ids: Iterable[str] | None = None) -> tuple[Attempt, ...]:
    """The attempts that hold a lease, at most one for each assignment and each device.

    `ids` are the assignments that are meant; None: all.
    """
    if ids is not None:
        rows = (row for one in ids for row in _LIVE_OF.all(connection, assignment=one))
        return tuple(map(_attempt, rows))
    query = _SELECT.where(IS_LIVE).order_by(attempts.c.assignment)
    return tuple(map(_attempt, connection.execute(query)))


def live_lease_of(connection: Connection, worker: str, device_number: int = 0) -> Attempt | None:
    """The lease or offer that a device of a worker holds."""
    held = live_leases_of(connection, worker)
    return next((one for one in held if one.device_number == device_number), None)


def live_leases_of(connection: Connection, worker: str) -> tuple[Attempt, ...]:
    """The leases and offers that a worker holds, by the number of the device."""
    return tuple(map(_attempt, _LIVE_OF_WORKER.all(connection, worker=worker)))


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
    """Assignment to seat to the most free memory with which it ran out there, in bytes."""
    found: dict[str, dict[str, int]] = {}
    rows = (
        connection.execute(_RAN_OUT)
        if ids is None
        else (row for one in ids for row in _RAN_OUT_OF.all(connection, assignment=one))
    )
    for row in rows:
        of_one = found.setdefault(row.assignment, {})
        seat = seat_of(row.worker, row.device_number)
        of_one[seat] = max(of_one.get(seat, 0), row.free_memory_bytes)
    return found


@dataclass(frozen=True)
class MeasuredAttempt:
    """What an attempt at a spec says of memory: how much was free, and what the trainer took."""

    worker: str
    spec: ExpertSpec
    free_memory_bytes: int
    peak_memory_bytes: int | None
    device_number: int = 0

    @property
    def seat(self) -> str:
        """The device of its worker that tried."""
        return seat_of(self.worker, self.device_number)


def out_of_memory(
    connection: Connection, workers: Iterable[str] | None = None
) -> tuple[MeasuredAttempt, ...]:
    """Attempts that ran out of memory; `workers` None: everybody's."""
    query = _MEASURED.where(attempts.c.reason == "out_of_memory")
    if workers is not None:
        query = query.where(attempts.c.worker.in_(list(workers)))
    return tuple(map(_measured, connection.execute(query)))


def memory_peaks(
    connection: Connection, ids: Iterable[str] | None = None
) -> tuple[MeasuredAttempt, ...]:
    """The accepted attempts whose peak is known, oldest first; `ids` None: of all assignments.

    Not those on own data: that they were accepted does not say that anything was trained.
    """
    query = _MEASURED.where(
        attempts.c.peak_memory_bytes.is_not(None),
        attempts.c.state == "accepted",
        assignments.c.owner.is_(None),
    )
    if ids is not None:
        query = query.where(attempts.c.assignment.in_(list(ids)))
    return tuple(map(_measured, connection.execute(query)))


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


def handed_in(connection: Connection, spec: str, worker: str) -> Attempted | None:
    """The attempt in which `worker` handed in an expert of `spec`, unless it was refused."""
    query = (
        select(attempts.c.assignment, attempts.c.fencing)
        .join(assignments, assignments.c.assignment == attempts.c.assignment)
        .where(
            assignments.c.spec == spec,
            attempts.c.worker == worker,
            attempts.c.state.in_(("submitted", "accepted")),
        )
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row.assignment, row.fencing)


def observed_speeds(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, float]:
    """Seat to the FLOP/s that its newest attempts reached by our clock, but for their start.

    `ids` are the workers that are meant, None: all. Those attempts count that got some steps
    further since they were acknowledged.
    """
    rows: Iterable[Any]
    if ids is None:
        rows = connection.execute(_PACES.order_by(attempts.c.offered_at))
    else:
        rows = (row for one in ids for row in reversed(_PACES_OF.all(connection, worker=one)))
    return {
        seat_of(row.worker, row.device_number): _speed(
            parse_spec(row.body), row.steps, row.seconds, row.tokens_per_second
        )
        for row in rows
    }


def ended(
    assignment: str,
    fencing: int,
    *,
    state: str,
    reason: str,
    now: float,
    peak_memory_bytes: int | None = None,
) -> Row:
    """The attempt moves on to `state`; a state that is not live frees its worker.

    `peak_memory_bytes` is what its trainer took of memory, as far as its worker says so.
    """
    peak = {} if peak_memory_bytes is None else {"peak_memory_bytes": peak_memory_bytes}
    return changed(
        attempts,
        assignment=assignment,
        fencing=fencing,
        state=state,
        reason=reason,
        ended_at=now,
        **peak,
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
_LIVE_OF_WORKER = Prepared(
    _SELECT.where(IS_LIVE, attempts.c.worker == bindparam("worker")).order_by(
        attempts.c.device_number
    )
)
_RAN_OUT = select(attempts).where(attempts.c.reason == "out_of_memory")
_RAN_OUT_OF = Prepared(_RAN_OUT.where(attempts.c.assignment == bindparam("assignment")))


_MEASURED = (
    select(
        attempts.c.worker,
        attempts.c.free_memory_bytes,
        attempts.c.peak_memory_bytes,
        attempts.c.device_number,
        specs.c.body,
    )
    .join(assignments, assignments.c.assignment == attempts.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
    .order_by(attempts.c.ended_at, attempts.c.assignment)
)

_PACES = (
    select(
        attempts.c.worker,
        attempts.c.device_number,
        (progress.c.step - attempts.c.resumed_step).label("steps"),
        (progress.c.progressed_at - progress.c.started_at).label("seconds"),
        progress.c.tokens_per_second,
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
_PACES_OF = Prepared(
    _PACES.where(attempts.c.worker == bindparam("worker"))
    .order_by(attempts.c.offered_at.desc())
    .limit(MAX_DEVICES)
)
_PROGRESSED = Prepared(_SELECT.where(IS_LIVE, progress.c.progressed_at >= bindparam("since")))


def _speed(spec: ExpertSpec, steps: int, seconds: float, tokens_per_second: float) -> float:
    one_step = step_flops(spec)
    return observed_speed(
        flops=steps * one_step,
        seconds=seconds,
        told=tokens_per_second / spec.train.tokens_per_step * one_step,
    )


def _measured(row: Any) -> MeasuredAttempt:
    return MeasuredAttempt(
        row.worker,
        parse_spec(row.body),
        row.free_memory_bytes,
        row.peak_memory_bytes,
        row.device_number,
    )


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
        device_number=row.device_number,
    )
