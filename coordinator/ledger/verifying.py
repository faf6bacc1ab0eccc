"""The decision on a collected submission, what it earns, and what it makes superfluous."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy import Row as Found

from coordinator import lifecycle
from coordinator.credit import steps_by_worker
from coordinator.ledger.assignments import (
    AssignmentRow,
    get_assignment,
    live_twins,
    parse_spec,
    standing_row,
    store_expiry,
)
from coordinator.ledger.attempts import ended, find_attempt, tries
from coordinator.ledger.checkpoints import superseded_training, training_checkpoints, unneeded_blobs
from coordinator.ledger.collection import drop
from coordinator.ledger.ending import cancel_assignment
from coordinator.ledger.entries import Row, added, changed, next_number, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import assignments, checkpoints, receipts, specs
from coordinator.scoring.verification import Accepted, Decision, Rejected
from protocol.manifests import CheckpointManifest
from protocol.specs import ExpertSpec
from shared.sizing import step_flops


@dataclass(frozen=True)
class SubmissionRow:
    """An expert whose files the coordinator holds, to be verified."""

    assignment: str
    fencing: int
    worker: str
    spec: ExpertSpec
    manifest: CheckpointManifest
    owner: str | None = None


def durable_submissions(connection: Connection) -> list[SubmissionRow]:
    """Submissions that were collected and wait for their verification, oldest first."""
    query = (
        select(checkpoints, specs.c.body.label("spec_body"), assignments.c.owner)
        .join(
            assignments,
            (assignments.c.assignment == checkpoints.c.assignment)
            & (assignments.c.fencing == checkpoints.c.fencing),
        )
        .join(specs, specs.c.digest == assignments.c.spec)
        .where(
            assignments.c.state == "submitted",
            checkpoints.c.kind == "expert",
            checkpoints.c.state == "durable",
        )
        .order_by(checkpoints.c.decided_at, checkpoints.c.checkpoint_id)
    )
    return [
        SubmissionRow(
            assignment=row.assignment,
            fencing=row.fencing,
            worker=row.worker,
            spec=parse_spec(row.spec_body),
            manifest=CheckpointManifest.model_validate_json(row.body),
            owner=row.owner,
        )
        for row in connection.execute(query)
    ]


def record_verification(
    connection: Connection,
    assignment: str,
    fencing: int,
    decision: Decision,
    reason: str,
    now: float,
) -> tuple[str, ...]:
    """Write down the decision on a durable submission; `reason` is what its worker may read.

    Accepted, it earns receipts, and a backup or the original that it overtook is cancelled. Not
    accepted, the assignment is open again for other workers and starts afresh: the training
    checkpoints that led there are dropped. On own data nobody else can start afresh: then it is
    cancelled, and what is accepted earns no credit, as nothing proves that it was trained. Returns
    the digests of blobs that may now be deleted. Raises LedgerError when there is no such
    submission.
    """
    found = get_assignment(connection, assignment)
    submission = _submission(connection, assignment, fencing)
    attempt = find_attempt(connection, assignment, fencing)
    author = None if attempt is None else attempt.foreign_author
    is_accepted = isinstance(decision, Accepted)
    after = (
        lifecycle.accept(found.standing, fencing=fencing)
        if is_accepted
        else lifecycle.reject(found.standing, fencing=fencing, now=now, author=author)
    )
    if isinstance(after, lifecycle.Refused):
        raise LedgerError(after.message)
    outcome = type(decision).__name__.lower()
    dropped = training_checkpoints(connection, assignment)
    rows = [
        changed(
            checkpoints,
            checkpoint_id=submission.checkpoint_id,
            state=outcome,
            reason=reason,
            decided_at=now,
        ),
        ended(assignment, fencing, state=outcome, reason=reason, now=now),
        standing_row(after, reason=f"{outcome}: {reason}", now=now),
        *drop(connection, dropped, now),
    ]
    if is_accepted:
        rows += _earned(connection, found, submission.manifest_digest, now)
    facts = {
        "assignment": assignment,
        "fencing": fencing,
        "worker": submission.worker,
        "outcome": outcome,
        "reason": reason,
        "resumed_from": author,
    }
    record(connection, "accept" if is_accepted else "reject", *rows, facts=facts, now=now)
    store_expiry(connection, after)
    unneeded: set[str] = set()
    if is_accepted:
        for twin in live_twins(connection, found):
            words = f"{assignment} of the same spec was accepted first"
            unneeded |= set(cancel_assignment(connection, twin, reason=words, now=now))
    unneeded |= set(unneeded_blobs(connection, superseded_training(connection, assignment)))
    if isinstance(decision, Rejected):
        unneeded |= set(unneeded_blobs(connection, [submission.checkpoint_id]))
    if found.owner is not None and not is_accepted:
        row = get_assignment(connection, assignment)
        words = f"{outcome}: {reason}"
        unneeded |= set(cancel_assignment(connection, row, reason=words, now=now))
    return tuple(sorted(unneeded))


def _submission(connection: Connection, assignment: str, fencing: int) -> Found[Any]:
    query = select(checkpoints).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.fencing == fencing,
        checkpoints.c.kind == "expert",
        checkpoints.c.state == "durable",
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise LedgerError(f"assignment {assignment}: its submission is not durable")
    return row


def _earned(connection: Connection, found: AssignmentRow, manifest: str, now: float) -> list[Row]:
    number, spec = next_number(connection), found.spec
    done = steps_by_worker(
        tries(connection, spec.digest),
        last=(found.assignment, found.standing.fencing),
        num_steps=spec.train.num_steps,
    )
    return [
        added(
            receipts,
            entry=number,
            worker=worker,
            assignment=found.assignment,
            spec=spec.digest,
            manifest=manifest,
            num_steps=steps,
            credit=0.0 if found.owner is not None else step_flops(spec) * steps,
            accepted_at=now,
        )
        for worker, steps in done.items()
    ]
