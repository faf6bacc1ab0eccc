"""Pure: what a run does next, from what the ledger holds: seeds, classes, experts, scores.

Every answer depends on what was done, not on what was said: a role that is killed at any point asks
again and goes on. Seeds, and likewise experts, are written in one transaction each, so that one
assignment of a kind means that all of them were planned.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coordinator.ledger.assignments import AssignmentRow
from coordinator.ledger.results import RunSnapshot
from protocol.assignments import AssignmentState
from protocol.messages import Phase


@dataclass(frozen=True)
class PlanSeeds:
    """Make the seeds' assignments."""


@dataclass(frozen=True)
class Classify:
    """Measure the seed on every domain's dev shard, and set each domain's class."""


@dataclass(frozen=True)
class PlanExperts:
    """Make the experts' assignments, for all schemes at equal budget."""


@dataclass(frozen=True)
class Wait:
    """Workers are at it (`phase` is seeding or training), or cannot go on (stalled)."""

    phase: Phase
    reason: str


@dataclass(frozen=True)
class Score:
    """Score every ensemble on the test shards, and record the results."""


@dataclass(frozen=True)
class Finished:
    """Nothing is left to do."""


Action = PlanSeeds | Classify | PlanExperts | Wait | Score | Finished

_ENDED_BADLY = (AssignmentState.FAILED, AssignmentState.CANCELLED)


def next_action(snapshot: RunSnapshot, *, domains: Collection[str]) -> Action:
    """The one thing to do now. `domains` are those that experts are trained for."""
    if snapshot.phase == "finished":
        return Finished()
    seeds = [row for row in snapshot.assignments if row.spec.kind == "seed"]
    experts = [row for row in snapshot.assignments if row.spec.kind == "expert"]
    if not seeds:
        return PlanSeeds()
    waiting = _wait_for(seeds, "seeding", "seeds")
    if waiting is not None:
        return waiting
    if not experts:
        classified = {row.domain for row in snapshot.domains if row.difficulty is not None}
        return PlanExperts() if set(domains) <= classified else Classify()
    return _wait_for(experts, "training", "experts") or Score()


def _wait_for(rows: Sequence[AssignmentRow], phase: Phase, what: str) -> Wait | None:
    """What keeps these assignments from being accepted, all of them; None when they are."""
    counts = Counter(row.state for row in rows)
    for row in rows:
        if row.state in _ENDED_BADLY:
            detail = f": {row.reason}" if row.reason else ""
            return Wait("stalled", f"assignment {row.assignment} is {row.state}{detail}")
    if counts[AssignmentState.ACCEPTED] == len(rows):
        return None
    parts = [
        f"{counts[state]} {state}"
        for state in AssignmentState
        if counts[state] and state is not AssignmentState.ACCEPTED
    ]
    done = f"{counts[AssignmentState.ACCEPTED]} of {len(rows)} {what} accepted"
    return Wait(phase, ", ".join([done, *parts]))
