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
class Tally:
    """Steps and FLOPs of all curves, done and in all; a prefix that specs share counts once."""

    steps: int
    num_steps: int
    flops: float
    num_flops: float
    trained: int
    planned: int


def tally(rows: Sequence[AssignmentRow], steps: Mapping[str, int]) -> Tally:
    """Of `rows`, where `steps` are those of the trainings under way, by assignment."""
    ends: dict[str, tuple[int, int, float]] = {}
    to_train = [row for row in rows if row.spec.train.num_steps > 0 and row.backup_of is None]
    to_train = [row for row in to_train if row.state is not AssignmentState.CANCELLED]
    for row in to_train:
        last = row.spec.train.num_steps
        done = last if row.state in _TRAINED else min(steps.get(row.assignment, 0), last)
        before = ends.get(row.spec.curve, (0, 0, 0.0))
        reached = max(done, before[0]), max(last, before[1]), step_flops(row.spec)
        ends[row.spec.curve] = reached
    return Tally(
        steps=sum(done for done, _, _ in ends.values()),
        num_steps=sum(last for _, last, _ in ends.values()),
        flops=sum(done * each for done, _, each in ends.values()),
        num_flops=sum(last * each for _, last, each in ends.values()),
        trained=sum(row.state in _TRAINED for row in to_train),
        planned=len(to_train),
    )


def seconds_left(first: Tally, now: Tally, seconds: float) -> float | None:
    """For what is planned, at the pace since `first`, `seconds` ago; None before there is one."""
    done = now.flops - first.flops
    return None if done <= 0 else seconds * (now.num_flops - now.flops) / done


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
