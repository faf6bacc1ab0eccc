"""Assignments that are tried again and again, and fail each time in the same way."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from coordinator.ledger.tables import assignments, attempts
from protocol.assignments import FINAL
from protocol.messages import ReleaseReason

TRAINER_FAILURES: frozenset[ReleaseReason] = frozenset(
    {"trainer_failed", "out_of_memory", "diverged"}
)
"""Typed errors of training itself; enough equal ones of proven workers fail the assignment."""


@dataclass(frozen=True)
class Failing:
    """Attempts at an assignment that nobody has done which ended with the same typed error."""

    assignment: str
    reason: str
    num_attempts: int
    num_workers: int


def failing(connection: Connection) -> tuple[Failing, ...]:
    """The most frequent error of each, unless the operator has opened it anew since."""
    num_attempts = func.count()
    query = (
        select(
            attempts.c.assignment,
            attempts.c.reason,
            num_attempts,
            func.count(attempts.c.worker.distinct()),
        )
        .join(assignments, assignments.c.assignment == attempts.c.assignment)
        .where(
            assignments.c.state.not_in([state.value for state in FINAL]),
            assignments.c.num_returns > 0,
            attempts.c.state == "released",
            attempts.c.reason.in_(sorted(TRAINER_FAILURES)),
        )
        .group_by(attempts.c.assignment, attempts.c.reason)
        .order_by(attempts.c.assignment, num_attempts)
    )
    return tuple({row[0]: Failing(*row) for row in connection.execute(query)}.values())
