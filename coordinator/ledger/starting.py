"""How work on a lease begins: its offer is acknowledged, and training goes on from some step."""

from dataclasses import replace

from sqlalchemy import Connection

from coordinator import lifecycle
from coordinator.ledger.assignments import AssignmentRow, find_assignment
from coordinator.ledger.attempts import Attempt, handed_in
from coordinator.ledger.decisions import explained, unknown, update_progress, write_decision
from coordinator.ledger.entries import changed, record
from coordinator.ledger.tables import attempts
from coordinator.lifecycle import Assignment, Holder, Refused
from shared.training.ends import spec_ending_at


def acknowledge_lease(
    connection: Connection,
    assignment: str,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """The worker starts; harmless when repeated."""
    row = find_assignment(connection, assignment)
    if row is None:
        return unknown(assignment)
    after = acknowledge(connection, row, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    return explained(connection, assignment, holder, after)


def acknowledge(
    connection: Connection,
    row: AssignmentRow,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """Let an offered assignment run; nothing changes where it does already."""
    after = lifecycle.acknowledge(
        row.standing, holder, now=now, heartbeat_seconds=heartbeat_seconds
    )
    if isinstance(after, Refused) or after == row.standing:
        return after
    running = changed(attempts, assignment=after.assignment, fencing=after.fencing, state="running")
    write_decision(connection, "acknowledge", after, running, now=now)
    values = {"expires_at": after.expires_at, "started_at": now, "progressed_at": now}
    update_progress(connection, after, values)
    return after


def note_start(
    connection: Connection, row: AssignmentRow, attempt: Attempt, first_step: int | None, now: float
) -> Attempt:
    """The attempt, as its worker says that it began: later than the checkpoint of its offer.

    It went on from the end of a shorter training of the same curve that it handed in, where there
    is one of so many steps, whose steps were credited with that; else from an own checkpoint that
    the coordinator does not hold. Only what comes before any progress is heeded, and nothing that
    would take steps from the worker whose checkpoint was offered.
    """
    if first_step is None or not attempt.resumed_step < first_step <= row.spec.train.num_steps:
        return attempt
    if attempt.step > attempt.resumed_step or attempt.foreign_author is not None:
        return attempt
    values: dict[str, object] = {"resumed_step": first_step}
    if attempt.resumed_from is None:
        shorter = spec_ending_at(row.spec, first_step).digest
        is_shorter = first_step < row.spec.train.num_steps
        prefix = handed_in(connection, shorter, attempt.worker) if is_shorter else None
        values["resumed_from"] = attempt.worker
        if prefix is not None:
            values |= {"resumed_assignment": prefix[0], "resumed_fencing": prefix[1]}
    key = {"assignment": attempt.assignment, "fencing": attempt.fencing}
    written = changed(attempts, **key, **values)
    record(connection, "begin", written, facts={**key, "step": first_step}, now=now)
    return replace(attempt, resumed_from=attempt.worker, resumed_step=first_step)
