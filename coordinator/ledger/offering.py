"""Offers: an open assignment goes to a device, and whoever takes it may be a newcomer."""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from coordinator import lifecycle
from coordinator.ledger.assignments import AssignmentRow, get_assignment
from coordinator.ledger.checkpoints import resume_of
from coordinator.ledger.decisions import write_decision
from coordinator.ledger.entries import added
from coordinator.ledger.prepared import Prepared, insert_into
from coordinator.ledger.tables import attempts, progress, receipts
from coordinator.lifecycle import Assignment, Refused
from protocol.manifests import CheckpointManifest

_START = insert_into(
    progress,
    (
        "assignment",
        "fencing",
        "expires_at",
        "step",
        "tokens_per_second",
        "started_at",
        "progressed_at",
    ),
)
_EARNED = Prepared(
    select(receipts.c.entry)
    .where(receipts.c.worker == bindparam("worker"), receipts.c.credit > 0)
    .limit(1)
)


@dataclass(frozen=True, kw_only=True)
class OfferTerms:
    """Which assignment goes to which device of which worker, why, and how much memory it had."""

    assignment: str
    worker: str
    free_memory_bytes: int
    reason: str
    device_number: int = 0


@dataclass(frozen=True)
class Offered:
    """An offer that was made: the assignment as it stands, and what training goes on from."""

    row: AssignmentRow
    standing: Assignment
    resume: CheckpointManifest | None


def offer_assignment(
    connection: Connection, terms: OfferTerms, *, now: float, heartbeat_seconds: float
) -> Offered | Refused:
    """Offer an open assignment to a device that holds no lease.

    Raises IntegrityError where it holds one, or where another device of the worker does and none of
    the worker's work was accepted yet.
    """
    row = get_assignment(connection, terms.assignment)
    after = lifecycle.offer(
        row.standing, worker=terms.worker, now=now, heartbeat_seconds=heartbeat_seconds
    )
    if isinstance(after, Refused):
        return after
    resume = resume_of(connection, terms.assignment, row.backup_of)
    attempt = added(
        attempts,
        assignment=after.assignment,
        fencing=after.fencing,
        worker=terms.worker,
        state="offered",
        device_number=terms.device_number,
        newcomer=int(not is_proven(connection, terms.worker)),
        free_memory_bytes=terms.free_memory_bytes,
        offer_reason=terms.reason,
        offered_at=now,
        resumed_from=resume.manifest.worker if resume else None,
        resumed_assignment=resume.assignment if resume else None,
        resumed_fencing=resume.fencing if resume else None,
        resumed_step=resume.manifest.step if resume else 0,
        reason="",
    )
    write_decision(connection, "offer", after, attempt, reason=terms.reason, now=now)
    _START.run(
        connection,
        assignment=after.assignment,
        fencing=after.fencing,
        expires_at=after.expires_at,
        step=0,
        tokens_per_second=0.0,
        started_at=now,
        progressed_at=now,
    )
    return Offered(row, after, resume.manifest if resume else None)


def is_proven(connection: Connection, worker: str) -> bool:
    """Whether some of a worker's work was accepted; on its own data that proves nothing."""
    return _EARNED.value(connection, worker=worker) is not None
