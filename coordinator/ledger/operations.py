"""What the operator may do to workers and assignments. Repeating an operation changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from coordinator import lifecycle
from coordinator.ledger.accepted import accepted_of
from coordinator.ledger.assignments import (
    AssignmentRow,
    find_assignment,
    get_assignment,
    live_twins,
)
from coordinator.ledger.ending import cancel_assignment, fail_assignment, retry_assignment
from coordinator.ledger.expiry import expire_leases_of
from coordinator.ledger.workers import Mark, WorkerRow, find_worker, mark_worker
from coordinator.lifecycle import Assignment, Refused
from protocol.admin import AssignmentVerb
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode


@dataclass(frozen=True)
class Settled:
    """An assignment as it stands after an operation; `also` names those that ended with it."""

    row: AssignmentRow
    also: tuple[str, ...] = ()


def treat_worker(
    connection: Connection, worker: str, verb: Mark, *, reason: str, now: float
) -> WorkerRow | None:
    """Ban a worker, drain it, or take that back; the worker as it is then, None if unknown.

    A banned worker's lease ends at once.
    """
    found = find_worker(connection, worker)
    if found is None:
        return None
    if not _holds_already(found, verb):
        mark_worker(connection, worker, verb, reason=reason, now=now)
    if verb == "ban":
        expire_leases_of(connection, worker, now=now)
    return find_worker(connection, worker)


def settle_assignment(
    connection: Connection, assignment: str, verb: AssignmentVerb, *, reason: str, now: float
) -> Settled | Refused:
    """Open an assignment again, or end it. When an original is ended its live backup is, too."""
    row = find_assignment(connection, assignment)
    if row is None:
        return Refused(ErrorCode.UNKNOWN_ASSIGNMENT, f"assignment {assignment}: none in this run")
    if _is_settled(row, verb):
        return Settled(row)
    refused = _forbidden(connection, row, verb)
    if refused is not None:
        return refused
    also = () if verb == "retry" or row.backup_of is not None else live_twins(connection, row)
    if verb == "retry":
        retry_assignment(connection, row, reason=reason, now=now)
    elif verb == "fail":
        fail_assignment(connection, row, reason=reason, now=now)
    else:
        cancel_assignment(connection, row, reason=reason, now=now)
    for twin in also:
        words = f"its original {assignment} ended: {reason}"
        cancel_assignment(connection, twin, reason=words, now=now)
    after = get_assignment(connection, assignment)
    return Settled(after, tuple(twin.assignment for twin in also))


_DECIDES: dict[AssignmentVerb, Callable[[Assignment], Assignment | Refused]] = {
    "retry": lifecycle.retry,
    "cancel": lifecycle.cancel,
    "fail": lifecycle.fail,
}


def _holds_already(worker: WorkerRow, verb: Mark) -> bool:
    held = worker.banned if verb in ("ban", "unban") else worker.draining
    return held == (verb in ("ban", "drain"))


def _is_settled(row: AssignmentRow, verb: AssignmentVerb) -> bool:
    if verb == "retry":
        # Open for everybody and at once: there is nothing that opening it again would change.
        return row.standing == lifecycle.retry(row.standing)
    ended = {"cancel": AssignmentState.CANCELLED, "fail": AssignmentState.FAILED}
    return row.state is ended[verb]


def _forbidden(connection: Connection, row: AssignmentRow, verb: AssignmentVerb) -> Refused | None:
    decided = _DECIDES[verb](row.standing)
    if isinstance(decided, Refused):
        return decided
    if verb != "retry":
        return None
    if row.backup_of is not None:
        return Refused(
            ErrorCode.WRONG_STATE,
            f"{row.assignment} is a backup, which is made when it is needed: "
            f"retry its original {row.backup_of}",
        )
    if accepted_of(connection, row.spec.digest) is not None:
        return Refused(
            ErrorCode.WRONG_STATE, f"{row.assignment}: its backup was accepted, nothing is left"
        )
    return None
