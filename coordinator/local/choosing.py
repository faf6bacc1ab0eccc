"""Which assignment a free trainer takes, and what keeps the rest from being done. Pure."""

from collections.abc import Collection, Sequence

from coordinator.ledger.assignments import AssignmentRow
from coordinator.workload import describe, is_offerable
from protocol.assignments import LIVE, AssignmentState
from shared.sizing import train_flops


def choose(
    rows: Sequence[AssignmentRow],
    *,
    accepted: Collection[str],
    workers: Collection[str],
    now: float,
) -> AssignmentRow | None:
    """The assignment that a trainer of this machine takes now; None: there is none for it.

    The one of the longest curve first, so that no long training is left to the end. A training
    waits while a shorter one of its curve is to be done or is being done here: it goes on from
    where that one stops, and would be ready no sooner if it did not wait.
    """
    ready = [row for row in rows if _is_ready(row, accepted, workers) and _is_due(row, now)]
    shortest: dict[str, int] = {}
    lengths: dict[str, float] = {}
    for row in rows:
        here = row in ready or (row.state in LIVE and row.standing.worker in workers)
        curve, steps = row.spec.curve, row.spec.train.num_steps
        if here:
            shortest[curve] = min(steps, shortest.get(curve, steps))
        lengths[curve] = max(train_flops(row.spec), lengths.get(curve, 0.0))
    first = [row for row in ready if row.spec.train.num_steps == shortest[row.spec.curve]]
    return max(first, key=lambda row: lengths[row.spec.curve], default=None)


def is_waiting(
    rows: Sequence[AssignmentRow], *, accepted: Collection[str], workers: Collection[str]
) -> bool:
    """Whether the run may go on by itself: a training is under way, or one waits for a trainer.

    What another machine holds comes back when its lease runs out.
    """
    under_way = {*LIVE, AssignmentState.SUBMITTED}
    return any(row.state in under_way or _is_ready(row, accepted, workers) for row in rows)


def obstacles(rows: Sequence[AssignmentRow], *, workers: Collection[str]) -> tuple[str, ...]:
    """Open assignments that this machine does not get again, each in words with the reason."""
    return tuple(
        f"{describe(row.spec)} ({row.assignment}): {row.reason}"
        for row in rows
        if row.state is AssignmentState.OPEN
        and row.backup_of is None
        and _is_excluded(row, workers)
    )


def _is_ready(row: AssignmentRow, accepted: Collection[str], workers: Collection[str]) -> bool:
    fits = is_offerable(row, accepted=accepted) and row.backup_of is None and row.owner is None
    return fits and not _is_excluded(row, workers)


def _is_due(row: AssignmentRow, now: float) -> bool:
    return row.standing.not_before <= now


def _is_excluded(row: AssignmentRow, workers: Collection[str]) -> bool:
    """Equal machines give equal bits: what one of this machine's was refused for, all are."""
    return not row.standing.excluded.isdisjoint(workers)
