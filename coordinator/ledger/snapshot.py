"""The run as one value: all that decides what it does next."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from coordinator.ledger.assignments import AssignmentRow, all_assignments
from coordinator.ledger.domains import DomainRow, all_domains
from coordinator.ledger.failing import Failing, failing
from coordinator.ledger.results import EvaluationRow, all_evaluations, newest_results
from coordinator.ledger.run import get_run
from coordinator.ledger.tables import assignments, attempts
from protocol.assignments import AssignmentState
from protocol.ids import Digest
from protocol.views import Phase, ResultTable


@dataclass(frozen=True)
class RunSnapshot:
    """All that decides what the run does next.

    `diverged` are the specs of failed assignments whose last attempt found no finite loss.
    `failing` are those that are still tried, though they failed before.
    """

    phase: Phase
    domains: tuple[DomainRow, ...]
    assignments: tuple[AssignmentRow, ...]
    evaluations: tuple[EvaluationRow, ...]
    results: ResultTable | None
    diverged: frozenset[Digest] = frozenset()
    failing: tuple[Failing, ...] = ()


def snapshot(connection: Connection) -> RunSnapshot:
    """The run as one consistent value."""
    return RunSnapshot(
        phase=get_run(connection).phase,
        domains=all_domains(connection),
        assignments=_canonical(all_assignments(connection)),
        evaluations=all_evaluations(connection),
        results=newest_results(connection),
        diverged=_diverged(connection),
        failing=failing(connection),
    )


def _canonical(rows: tuple[AssignmentRow, ...]) -> tuple[AssignmentRow, ...]:
    """One row for each spec: the original, or the backup that was accepted in its place."""
    overtook = {
        row.backup_of: row
        for row in rows
        if row.backup_of is not None and row.state is AssignmentState.ACCEPTED
    }
    return tuple(overtook.get(row.assignment, row) for row in rows if row.backup_of is None)


def _diverged(connection: Connection) -> frozenset[Digest]:
    newest = (attempts.c.assignment == assignments.c.assignment) & (
        attempts.c.fencing == assignments.c.fencing
    )
    query = (
        select(assignments.c.spec)
        .join(attempts, newest)
        .where(assignments.c.state == "failed", attempts.c.reason == "diverged")
    )
    return frozenset(connection.execute(query).scalars())
