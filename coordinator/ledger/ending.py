"""How an assignment ends without being accepted, and how the operator opens it again."""

from sqlalchemy import Connection

from coordinator import lifecycle
from coordinator.ledger.assignments import (
    AssignmentRow,
    idle_backups,
    standing_row,
    store_expiry,
)
from coordinator.ledger.attempts import ended
from coordinator.ledger.checkpoints import (
    submitted_checkpoints,
    superseded_training,
    training_checkpoints,
    unneeded_blobs,
)
from coordinator.ledger.collection import drop
from coordinator.ledger.entries import record
from coordinator.ledger.errors import LedgerError
from coordinator.lifecycle import Refused
from protocol.assignments import LIVE


def cancel_assignment(
    connection: Connection, row: AssignmentRow, *, reason: str, now: float
) -> tuple[str, ...]:
    """It is not needed any more: a holder's lease is lost and its checkpoints are dropped.

    Returns the digests of blobs that may now be deleted. Raises LedgerError for one at its end.
    """
    after = lifecycle.cancel(row.standing)
    if isinstance(after, Refused):
        raise LedgerError(after.message)
    rows = [standing_row(after, reason=f"cancelled: {reason}", now=now)]
    if row.state in LIVE:
        fencing = row.standing.fencing
        rows.append(ended(row.assignment, fencing, state="cancelled", reason=reason, now=now))
    experts = submitted_checkpoints(connection, row.assignment)
    dropped = [*training_checkpoints(connection, row.assignment), *experts]
    rows += drop(connection, dropped, now)
    facts = {"assignment": row.assignment, "reason": reason}
    record(connection, "cancel", *rows, facts=facts, now=now)
    store_expiry(connection, after)
    gone = [*superseded_training(connection, row.assignment), *experts]
    return unneeded_blobs(connection, gone)


def cancel_idle_backups(connection: Connection, *, now: float) -> None:
    """A backup whose worker gave it back is not offered to another: the original goes on alone."""
    for row in idle_backups(connection):
        cancel_assignment(connection, row, reason="nobody does it any more", now=now)


def fail_assignment(connection: Connection, row: AssignmentRow, *, reason: str, now: float) -> None:
    """Nobody can do it. Its training checkpoints stay, for a retry. Raises LedgerError."""
    after = lifecycle.fail(row.standing)
    if isinstance(after, Refused):
        raise LedgerError(after.message)
    rows = [standing_row(after, reason=f"failed: {reason}", now=now)]
    if row.state in LIVE:
        fencing = row.standing.fencing
        rows.append(ended(row.assignment, fencing, state="failed", reason=reason, now=now))
    facts = {"assignment": row.assignment, "reason": reason}
    record(connection, "fail", *rows, facts=facts, now=now)
    store_expiry(connection, after)


def retry_assignment(
    connection: Connection, row: AssignmentRow, *, reason: str, now: float
) -> None:
    """Open again, at once and for everybody. Raises LedgerError while it is held or accepted."""
    after = lifecycle.retry(row.standing)
    if isinstance(after, Refused):
        raise LedgerError(after.message)
    written = standing_row(after, reason=f"opened again: {reason}", now=now)
    facts = {"assignment": row.assignment, "reason": reason}
    record(connection, "retry", written, facts=facts, now=now)
    store_expiry(connection, after)
