"""What one decision looks at: the index as it stands, who asks, and who else could do it."""

import math
from dataclasses import dataclass

import numpy as np

from coordinator.scheduling.pace import Target
from coordinator.scheduling.requirements import find_obstacle
from coordinator.scheduling.roster import Roster
from coordinator.scheduling.shelves import Shelves
from coordinator.scheduling.underway import Underway
from coordinator.scheduling.values import Candidate, Running, Work

PATIENCE_SHARE = 0.5
"""A worker waits at most this share of the time that it would need itself."""

ROUNDING = 1e-9
"""Share by which a piece may be too large for the time there is."""

Rank = tuple[float, float, float, str]


@dataclass(frozen=True)
class Scene:
    """What a decision looks at, brought up to date to `now`."""

    shelves: Shelves
    roster: Roster
    underway: Underway
    target: Target
    behind: dict[int, list[Running]]
    now: float


@dataclass(frozen=True)
class Asking:
    """The asking worker: FLOP/s that count, how long it has waited, and how long at most."""

    candidate: Candidate
    speed: float
    waited: float
    patience: float

    def seconds(self, work: Work) -> float:
        """How long it would take."""
        return work.flops / self.speed

    def reach(self, now: float) -> float:
        """FLOPs of the largest piece that it ends while it is here."""
        until = self.candidate.available_until
        if until is None:
            return math.inf
        return self.speed * max(0.0, until - now) * (1.0 + ROUNDING)

    def most_waited(self, work: Work) -> float:
        """How long it waits for others to do this work."""
        return max(self.patience, PATIENCE_SHARE * self.seconds(work))


def room(scene: Scene, asking: Asking, kind: int) -> float:
    """FLOPs of the largest piece of a kind that the worker ends by the target, and while here."""
    seconds = max(0.0, scene.target.by_kind[kind] - scene.now)
    return min(asking.speed * seconds * (1.0 + ROUNDING), asking.reach(scene.now))


def rank(scene: Scene, work: Work) -> Rank:
    """What comes first is the least flexible: the latest target, then the least capacity."""
    kind, target = scene.shelves.kind_of(work), scene.target
    return (
        -target.by_kind[kind],
        target.flexibility(kind, work.flops),
        -work.flops,
        work.assignment,
    )


def soonest_other(
    scene: Scene, asking: Asking, work: Work, holder: str = ""
) -> tuple[str, float] | None:
    """Which other seat is expected to finish the work soonest, and when; None: nobody can.

    Those of its present `holder`, a worker, do not count.
    """
    roster = scene.roster
    kind = scene.shelves.kind_of(work)
    able = roster.can_take(kind)
    without = {asking.candidate.seat, *roster.seats_of.get(holder, ())}
    excluded = {seat for worker in work.excluded for seat in roster.seats_of.get(worker, ())}
    for seat in without.union(excluded, work.ran_out or ()) & roster.slots.keys():
        able[roster.slots[seat]] = seat not in without and (
            find_obstacle(work, roster.candidates[seat], now=scene.now) is None
        )
    if not able.any():
        return None
    slots = np.flatnonzero(able)
    ends = np.maximum(roster.free_at(scene.now)[slots], scene.now)
    ends = ends + work.flops / roster.speeds()[slots]
    ends = np.where(ends <= roster.until()[slots], ends, np.inf)
    end = float(ends.min())
    if end == np.inf:
        return None
    return min(roster.names[slot] for slot in slots[ends == end]), end
