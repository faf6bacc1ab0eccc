"""What time does to leases: they run out, unless the coordinator itself was not listening."""

from sqlalchemy import Connection, bindparam, select, update

from coordinator import lifecycle
from coordinator.ledger.assignments import get_assignment, standing_row, store_expiry
from coordinator.ledger.attempts import ended, live_leases_of
from coordinator.ledger.checkpoints import superseded
from coordinator.ledger.entries import record
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.run import beat_role, role_beats
from coordinator.ledger.tables import assignments, attempts, checkpoints, progress
from coordinator.lifecycle import Assignment, Refused
from protocol.assignments import AssignmentState

TIMES = {
    AssignmentState.OFFERED: "the offer",
    AssignmentState.RUNNING: "the lease",
    AssignmentState.SUBMITTED: "the time to collect it",
}
_DUE = Prepared(
    select(progress.c.assignment)
    .where(progress.c.expires_at <= bindparam("now"))
    .limit(bindparam("most"))
)
_UNCOLLECTED = Prepared(
    select(assignments.c.assignment, attempts.c.device_number)
    .join(
        progress,
        (progress.c.assignment == assignments.c.assignment)
        & (progress.c.fencing == assignments.c.fencing),
    )
    .join(
        attempts,
        (attempts.c.assignment == assignments.c.assignment)
        & (attempts.c.fencing == assignments.c.fencing),
    )
    .where(
        assignments.c.worker == bindparam("worker"),
        assignments.c.state == AssignmentState.SUBMITTED.value,
        progress.c.expires_at.is_not(None),
    )
)


def expire_leases(
    connection: Connection, now: float, *, limit: int = 1000
) -> tuple[Assignment, ...]:
    """Offers, leases and submissions whose time ran out, at most `limit`: open again.

    Returns them as they were.
    """
    expired = []
    for (assignment,) in _DUE.all(connection, now=now, most=limit):
        standing = get_assignment(connection, assignment).standing
        after = lifecycle.expire(standing, now=now)
        if isinstance(after, Refused):
            continue
        waiting = select(checkpoints.c.checkpoint_id).where(
            checkpoints.c.assignment == assignment,
            checkpoints.c.kind == "expert",
            checkpoints.c.state == "announced",
        )
        facts = {
            "assignment": assignment,
            "fencing": standing.fencing,
            "worker": standing.worker,
            "state": standing.state.value,
        }
        record(
            connection,
            "expire",
            standing_row(after, reason=f"{TIMES[standing.state]} ran out", now=now),
            ended(assignment, standing.fencing, state="expired", reason="expired", now=now),
            *superseded(connection.execute(waiting).scalars(), now),
            facts=facts,
            now=now,
        )
        store_expiry(connection, after)
        expired.append(standing)
    return tuple(expired)


def expire_leases_of(connection: Connection, worker: str, *, now: float) -> None:
    """A worker's leases end now, whatever time they had left: it may not take part any more."""
    held = live_leases_of(connection, worker)
    for one in held:
        newest = (progress.c.assignment == one.assignment) & (progress.c.fencing == one.fencing)
        connection.execute(update(progress).where(newest).values(expires_at=now))
    if held:
        expire_leases(connection, now)


def extend_leases(connection: Connection, seconds: float) -> int:
    """Shift every expiry by `seconds`; returns how many."""
    waiting = progress.c.expires_at.is_not(None)
    return connection.execute(
        update(progress)
        .where(waiting)
        .values(
            expires_at=progress.c.expires_at + seconds,
            collect_by=progress.c.collect_by + seconds,
        )
    ).rowcount


def forgive_downtime(connection: Connection, *, now: float, tolerance_seconds: float) -> float:
    """Extend every lease by the time in which the api did not listen; returns that time.

    A gap between signs of life of at most `tolerance_seconds` is normal and forgives nothing. The
    api calls this before it judges any lease, so that neither a restart nor a pause costs one.
    Where the clock was set back by more than a lease lasts, leases are shortened by as much:
    otherwise nobody would get the work of a worker that is gone until the clock was where it was.
    """
    last = role_beats(connection).get("api")
    gap = 0.0 if last is None else now - last
    if -lifecycle.LEASE_INTERVALS * tolerance_seconds <= gap <= tolerance_seconds:
        return 0.0
    extend_leases(connection, gap)
    beat_role(connection, "api", now)
    return max(0.0, gap)


def count_uncollected(connection: Connection, worker: str, device_number: int | None = None) -> int:
    """How many submissions of a device of a worker wait to be collected; None: of all of them."""
    rows = _UNCOLLECTED.all(connection, worker=worker)
    return sum(device_number in (None, row.device_number) for row in rows)


def keep_submissions(
    connection: Connection, worker: str, *, now: float, heartbeat_seconds: float
) -> None:
    """A worker that lives keeps the submissions that nobody collected from it yet."""
    for assignment in _uncollected(connection, worker):
        standing = get_assignment(connection, assignment).standing
        after = lifecycle.keep_submission(
            standing, worker=worker, now=now, heartbeat_seconds=heartbeat_seconds
        )
        store_expiry(connection, after)


def _uncollected(connection: Connection, worker: str) -> list[str]:
    return [row.assignment for row in _UNCOLLECTED.all(connection, worker=worker)]
