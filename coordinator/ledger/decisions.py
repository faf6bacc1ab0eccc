"""What decisions on leases share: load the assignment, ask the lifecycle, write down what it says.

A refusal is a value, so that what was noted on the way (a spare submission) is committed with it.
"""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection

from coordinator.ledger.assignments import standing_row
from coordinator.ledger.attempts import find_attempt
from coordinator.ledger.checkpoints import Announcement, announced
from coordinator.ledger.entries import EntryKind, Row, record
from coordinator.ledger.prepared import update_by_key
from coordinator.ledger.tables import progress
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.blobs import BlobRef
from protocol.errors import ErrorCode


def unknown(assignment: str) -> Refused:
    """The refusal where there is no such assignment."""
    return Refused(ErrorCode.UNKNOWN_ASSIGNMENT, f"assignment {assignment}: there is none")


def impossible_step(step: int, num_steps: int) -> Refused | None:
    """The refusal of a checkpoint later than the last step; None where it is not."""
    if step <= num_steps:
        return None
    return Refused(ErrorCode.BAD_REQUEST, f"checkpoint_step: {step}, expected at most {num_steps}")


def explained(
    connection: Connection, assignment: str, holder: Holder, outcome: Assignment | Refused
) -> Assignment | Refused:
    """A refusal because the holder's lease has ended says why it did."""
    if not isinstance(outcome, Refused) or outcome.code is not ErrorCode.LEASE_LOST:
        return outcome
    attempt = find_attempt(connection, assignment, holder.fencing)
    if attempt is None or attempt.worker != holder.worker or not attempt.reason:
        return outcome
    why = f"it was {attempt.state}: {attempt.reason}"
    if attempt.state == attempt.reason:
        why = f"it {attempt.state}"
    return replace(outcome, message=f"{outcome.message} ({why})")


def named_training(
    connection: Connection, standing: Assignment, manifest: BlobRef | None, step: int, now: float
) -> list[Row]:
    """What to write of a training checkpoint that the holder names; nothing where it names none."""
    if manifest is None or standing.worker is None:
        return []
    announcement = Announcement(
        assignment=standing.assignment,
        worker=standing.worker,
        fencing=standing.fencing,
        kind="training",
        step=step,
        manifest=manifest,
    )
    return announced(connection, announcement, now)


def update_progress(
    connection: Connection, standing: Assignment, values: Mapping[str, object]
) -> None:
    """Note what heartbeats tell, in the volatile table: no entry records it."""
    new = {f"new_{name}": value for name, value in values.items()}
    update_by_key(progress, tuple(values)).run(
        connection, key_assignment=standing.assignment, key_fencing=standing.fencing, **new
    )


def facts_of(standing: Assignment) -> dict[str, str | int | None]:
    """Whom and what a decision concerns, as its entry says it."""
    return {
        "assignment": standing.assignment,
        "fencing": standing.fencing,
        "worker": standing.worker,
    }


def write_decision(
    connection: Connection,
    kind: EntryKind,
    after: Assignment,
    *rows: Row,
    now: float,
    reason: str | None = None,
    **others: str,
) -> None:
    """Write what was decided of an assignment, with other rows that follow, and their entry."""
    facts = {**facts_of(after), **others}
    written = standing_row(after, reason=reason, now=now)
    record(connection, kind, written, *rows, facts=facts, now=now)
