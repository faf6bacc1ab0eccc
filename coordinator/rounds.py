"""Pure: what a run does next, from what the ledger holds: seeds, classes, experts, scores.

Every answer depends on what was done, not on what was said: a role that is killed at any point asks
again and goes on. Seeds, and likewise experts, are written in one transaction each, so that one
assignment of a kind means that all of them were planned. Experts on workers' own data are no part
of it: the run waits for none of them.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coordinator.ledger.assignments import AssignmentRow
from coordinator.ledger.failing import Failing
from coordinator.ledger.snapshot import RunSnapshot
from coordinator.planning.plan import Plan
from coordinator.purposes import is_measurement
from coordinator.scoring.verification import Standard
from protocol.assignments import AssignmentState
from protocol.ids import Digest
from protocol.views import Phase


@dataclass(frozen=True)
class PlanSeeds:
    """Make the seeds' assignments."""


@dataclass(frozen=True)
class Classify:
    """Measure the seed on every domain's dev shard, and set each domain's class."""


@dataclass(frozen=True)
class AddWork:
    """Make the assignments, averages among them, that the plan names and nobody has."""


@dataclass(frozen=True)
class Measure:
    """Measure what the plan waits for, as far as its checkpoints are there.

    Pairs of spec and domain, and groups of members with a domain.
    """

    losses: tuple[tuple[Digest, str], ...]
    posteriors: tuple[tuple[tuple[Digest, ...], str], ...]


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


Action = PlanSeeds | Classify | AddWork | Measure | Wait | Score | Finished

TOLD_AFTER = 3
"""Equal failures of an assignment after which its operator is told, whoever failed."""

_ENDED_BADLY = (AssignmentState.FAILED, AssignmentState.CANCELLED)
_SEEDS = ("seed", "pretrained")


def next_action(snapshot: RunSnapshot, plan: Plan | None) -> Action:
    """The one thing to do now. `plan` is None until seeds are accepted and domains classified."""
    if snapshot.phase == "finished":
        return Finished()
    rows = [row for row in snapshot.assignments if row.owner is None]
    seeds = [row for row in rows if row.spec.kind in _SEEDS]
    if not seeds:
        return PlanSeeds()
    failing = {one.assignment: one for one in snapshot.failing if one.num_attempts >= TOLD_AFTER}
    waiting = _wait_for(seeds, "seeding", "seeds", failing)
    if waiting is not None:
        return waiting
    if plan is None:
        return Classify()
    lost = {spec.digest for spec in plan.lost}
    others = [row for row in rows if row.spec.kind not in _SEEDS]
    if _lacks_work(plan, others):
        return AddWork()
    others = [row for row in others if row.spec.digest not in lost]
    found = _measure_next(plan, others)
    if found is None and plan.problem:
        return Wait("stalled", plan.problem)
    return found or _wait_for(others, "training", "experts", failing) or Score()


def standard_of(served: Collection[str]) -> Standard:
    """What is asked of a submission that is for all of `served`: a trial or a probe alone is there
    to be measured, and the run would never end if it had to be better than what it branched from.
    """
    return "any" if is_measurement(served) else "better"


def _lacks_work(plan: Plan, rows: Sequence[AssignmentRow]) -> bool:
    known = {row.spec.digest: set(row.schemes) for row in rows}
    work = [(spec.digest, set(served)) for spec, served in plan.assignments()]
    work += [(spec.digest, set()) for spec in plan.averages]
    return any(digest not in known or not served <= known[digest] for digest, served in work)


def _measure_next(plan: Plan, rows: Sequence[AssignmentRow]) -> Measure | None:
    """What can be measured of what the plan wants; None if nothing."""
    there = {row.spec.digest for row in rows if row.state is AssignmentState.ACCEPTED}
    losses = tuple(want for want in plan.wants if want[0] in there)
    posteriors = tuple(want for want in plan.wants_posteriors if set(want[0]) <= there)
    return Measure(losses, posteriors) if losses or posteriors else None


def _wait_for(
    rows: Sequence[AssignmentRow], phase: Phase, what: str, failing: Mapping[str, Failing]
) -> Wait | None:
    """What keeps these assignments from being accepted, all of them; None when they are.

    Stalled, too, when all that are left fail again and again. They are tried on: it takes proven
    workers that agree, or the operator, to hold an assignment itself to be broken.
    """
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
    words = ", ".join([done, *parts])
    left = [row for row in rows if row.state is not AssignmentState.ACCEPTED]
    hopeless = [row for row in left if row.assignment in failing]
    if not hopeless:
        return Wait(phase, words)
    first = hopeless[0]
    words += f"; {_failing_words(first, failing[first.assignment])}"
    return Wait("stalled" if len(hopeless) == len(left) else phase, words)


def _failing_words(row: AssignmentRow, failing: Failing) -> str:
    """What failed how often, whose word that is, and what the operator can do."""
    workers = "1 worker" if failing.num_workers == 1 else f"{failing.num_workers} workers"
    fix = (
        f"it is tried on, for one machine's failures prove nothing: let another worker join, or "
        f"end it with `hdee-coordinator fail RUN.toml {row.assignment}`"
    )
    if failing.reason == "diverged":
        fix += " and begin a run with a lower recipe.peak_learning_rate"
    return (
        f"{row.spec.domain} {row.spec.kind} {row.assignment} failed {failing.num_attempts} times "
        f"({failing.reason}) on {workers}; {fix}"
    )
