"""Submissions: a lease's holder hands in its expert, once, however often it says so."""

from sqlalchemy import Connection, bindparam, select

from coordinator import lifecycle
from coordinator.ledger.assignments import find_assignment, store_expiry
from coordinator.ledger.attempts import ended, find_attempt
from coordinator.ledger.checkpoints import Announcement, announced, keep_spare
from coordinator.ledger.decisions import explained, unknown, update_progress, write_decision
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.starting import note_start
from coordinator.ledger.tables import checkpoints
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.errors import ErrorCode
from protocol.messages import Submission

_SUBMITTED = Prepared(
    select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == bindparam("assignment"),
        checkpoints.c.fencing == bindparam("fencing"),
        checkpoints.c.manifest_digest == bindparam("manifest"),
        checkpoints.c.kind == "expert",
    )
)


def submit_expert(
    connection: Connection,
    assignment: str,
    submission: Submission,
    *,
    worker: str,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """The worker hands in its expert's manifest; harmless when repeated.

    Under an old fencing number of the same worker it is noted as a spare, and refused.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return unknown(assignment)
    named = Announcement(
        assignment=assignment,
        worker=worker,
        fencing=submission.fencing,
        kind="expert",
        step=row.spec.train.num_steps,
        manifest=submission.manifest,
    )
    if _submitted_before(connection, named, row.standing):
        return row.standing
    holder = Holder(worker=worker, fencing=submission.fencing)
    after = lifecycle.submit(row.standing, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(after, Refused):
        attempt = find_attempt(connection, assignment, submission.fencing)
        if after.code is ErrorCode.LEASE_LOST and attempt and attempt.worker == worker:
            keep_spare(connection, named, now)
        return explained(connection, assignment, holder, after)
    begun = find_attempt(connection, assignment, submission.fencing)
    if begun is not None:
        note_start(connection, row, begun, submission.first_step, now)
    rows = [
        ended(
            assignment,
            after.fencing,
            state="submitted",
            reason="",
            now=now,
            peak_memory_bytes=submission.peak_memory_bytes,
        ),
        *announced(connection, named, now),
    ]
    write_decision(connection, "submit", after, *rows, reason="waiting to be collected", now=now)
    store_expiry(connection, after)
    values = {"step": named.step, "tokens_per_second": submission.tokens_per_second}
    values |= {"progressed_at": now}
    update_progress(connection, after, values)
    return after


def _submitted_before(connection: Connection, named: Announcement, standing: Assignment) -> bool:
    if (standing.worker, standing.fencing) != (named.worker, named.fencing):
        return False
    found = _SUBMITTED.value(
        connection,
        assignment=named.assignment,
        fencing=named.fencing,
        manifest=named.manifest.digest,
    )
    return found is not None
