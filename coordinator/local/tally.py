"""How far a run is, as far as it is planned. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.ledger.assignments import AssignmentRow
from coordinator.workload import describe
from protocol.assignments import AssignmentState
from shared.sizing import step_flops
from shared.training.runner import Event
from shared.words import duration

_TRAINED = (AssignmentState.SUBMITTED, AssignmentState.ACCEPTED)


@dataclass(frozen=True)
class Curve:
    """Specs that differ in their last step alone: how far it is trained, and to where it goes.

    `step_flops` are those of one step.
    """

    step: int
    num_steps: int
    step_flops: float


@dataclass(frozen=True)
class Tally:
    """Steps and FLOPs of all curves, done and in all; a prefix that specs share counts once.

    `curves` has them by the name of the curve.
    """

    curves: Mapping[str, Curve]
    trained: int
    planned: int

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return sum(curve.step for curve in self.curves.values())

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return sum(curve.num_steps for curve in self.curves.values())

    @property
    def flops(self) -> float:
        """FLOPs that are done."""
        return sum(curve.step * curve.step_flops for curve in self.curves.values())

    @property
    def num_flops(self) -> float:
        """FLOPs in all."""
        return sum(curve.num_steps * curve.step_flops for curve in self.curves.values())


def tally(rows: Sequence[AssignmentRow], steps: Mapping[str, int]) -> Tally:
    """Of `rows`, where `steps` are those of the trainings under way, by assignment."""
    curves: dict[str, Curve] = {}
    to_train = [row for row in rows if row.spec.train.num_steps > 0 and row.backup_of is None]
    to_train = [row for row in to_train if row.state is not AssignmentState.CANCELLED]
    for row in to_train:
        last = row.spec.train.num_steps
        done = last if row.state in _TRAINED else min(steps.get(row.assignment, 0), last)
        before = curves.get(row.spec.curve, Curve(0, 0, 0.0))
        reached = max(done, before.step), max(last, before.num_steps)
        curves[row.spec.curve] = Curve(*reached, step_flops(row.spec))
    return Tally(
        curves=curves,
        trained=sum(row.state in _TRAINED for row in to_train),
        planned=len(to_train),
    )


def line_of(
    phase: str,
    now: Tally,
    left: float | None,
    running: Sequence[tuple[AssignmentRow, Event]],
    scorer: str | None = None,
) -> str:
    """`training: 3 of 24 trained, step 1234 of 18000, about 130 s left of what is planned, ...`.

    `scorer` is what the scorer is at.
    """
    if not now.planned:
        return phase
    parts = [f"{phase}: {now.trained} of {now.planned} trained"]
    parts.append(f"step {now.steps} of {now.num_steps}")
    if left is not None and now.steps < now.num_steps:
        parts.append(f"about {duration(left)} left of what is planned")
    parts += [_one(row, event) for row, event in running]
    parts += [] if scorer is None else [scorer]
    return ", ".join(parts)


def _one(row: AssignmentRow, event: Event) -> str:
    words = f"{describe(row.spec)} {event.get('step', 0)}/{row.spec.train.num_steps}"
    loss = event.get("loss")
    return words if loss is None else f"{words} loss {loss:.3f}"
