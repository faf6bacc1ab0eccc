"""What time does to leases: they run out, unless the coordinator itself was not listening."""

from sqlalchemy import Connection, bindparam, select, update

from coordinator import lifecycle
from coordinator.ledger.assignments import get_assignment, standing_row, store_expiry
from coordinator.ledger.attempts import ended
from coordinator.ledger.checkpoints import superseded
from coordinator.ledger.entries import record
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.run import beat_role, role_beats
from coordinator.ledger.tables import assignments, checkpoints, progress
from coordinator.lifecycle import Assignment, Refused
from protocol.assignments import AssignmentState

_DUE = Prepared(
    select(progress.c.assignment)
    .where(progress.c.expires_at <= bindparam("now"))
    .limit(bindparam("most"))
)
_UNCOLLECTED = Prepared(
    select(assignments.c.assignment)
    .join(
        progress,
        (progress.c.assignment == assignments.c.assignment)
        & (progress.c.fencing == assignments.c.fencing),
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
            standing_row(after, reason=f"{standing.state} ran out", now=now),
            ended(assignment, standing.fencing, state="expired", reason="expired", now=now),
            *superseded(connection.execute(waiting).scalars(), now),
            facts=facts,
            now=now,
        )
        store_expiry(connection, after)
        expired.append(standing)
    return tuple(expired)


def expire_lease_of(connection: Connection, worker: str, *, now: float) -> None:
    """A worker's lease ends now, whatever time it had left: it may not take part any more."""
    query = select(assignments.c.assignment).where(
        assignments.c.worker == worker, assignments.c.state.in_(["offered", "running"])
    )
    held = connection.execute(query).scalar()
    if held is None:
        return
    newest = (progress.c.assignment == held) & (
        progress.c.fencing == get_assignment(connection, held).standing.fencing
    )
    connection.execute(update(progress).where(newest).values(expires_at=now))
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
    """
    last = role_beats(connection).get("api")
    gap = 0.0 if last is None else now - last
    if gap <= tolerance_seconds:
        return 0.0
    extend_leases(connection, gap)
    beat_role(connection, "api", now)
    return gap


def count_uncollected(connection: Connection, worker: str) -> int:
    """How many submissions of a worker wait to be collected."""
    return len(_uncollected(connection, worker))


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
