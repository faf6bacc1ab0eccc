"""Steps for experts: in proportion at a given budget, and by measured slopes. Pure."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.planning.errors import PlanError

MAX_IMBALANCE = 0.005
"""How far a scheme's budget may be from the first scheme's, in the binding unit."""


@dataclass(frozen=True)
class Group:
    """`count` experts that take the same steps. `cost` is that of one step, in any unit."""

    name: str
    count: int
    cost: float
    proportion: int


def steps_in_proportion(groups: Sequence[Group], *, budget: float, most: int) -> dict[str, int]:
    """Each group's steps, as near to their proportions as whole steps at `budget` can be.

    The factor is budget / sum(count * cost * proportion); of the roundings up or down of each
    group's steps the one nearest to the budget is taken, the first of equals. Raises PlanError,
    with the numbers, where that is over 0.5 % away, below one step, or above `most`.
    """
    scale = budget / math.fsum(one.count * one.cost * one.proportion for one in groups)
    exact = [scale * group.proportion for group in groups]
    choices = itertools.product(*[(math.floor(steps), math.ceil(steps)) for steps in exact])

    def cost_of(chosen: Sequence[int]) -> float:
        return math.fsum(
            one.count * one.cost * steps for one, steps in zip(groups, chosen, strict=True)
        )

    best = min(choices, key=lambda chosen: abs(cost_of(chosen) - budget))
    table = {group.name: steps for group, steps in zip(groups, best, strict=True)}
    if abs(cost_of(best) / budget - 1) > MAX_IMBALANCE or min(best) < 1:
        raise PlanError(
            f"no steps in the proportions {[group.proportion for group in groups]} come within "
            f"{MAX_IMBALANCE:.1%} of the budget: {table} cost {cost_of(best) / budget:.4f} of it; "
            "expected more homogeneous_steps"
        )
    if max(best) > most:
        raise PlanError(f"steps {table}: expected at most recipe.schedule_steps {most}")
    return table


@dataclass(frozen=True)
class Probe:
    """What an expert's dev text cost after two numbers of steps, in nats per label."""

    first_steps: int
    first_loss: float
    second_steps: int
    second_loss: float

    @property
    def slope(self) -> float:
        """Nats won for each e-fold of steps: b in loss = a - b ln(steps), at least a trace."""
        won = self.first_loss - self.second_loss
        return max(won / math.log(self.second_steps / self.first_steps), 1e-6)


def steps_by_slope(probes: Mapping[str, Probe], *, total: int, most: int) -> dict[str, int]:
    """Divide `total` steps so that the last one wins every expert equally much.

    With loss = a - b ln(n), whose slope is b / n, the least summed loss has n in proportion to b;
    nobody gets less than it has been probed at, nor more than `most`. All experts' steps cost the
    same, so that a slope per step is a slope per FLOP. Sums are exact: what is left after rounding
    down goes to the largest remainders. Raises PlanError when the bounds leave no solution.
    """
    least = {name: probe.second_steps for name, probe in probes.items()}
    if not sum(least.values()) <= total <= most * len(probes):
        raise PlanError(
            f"{total} steps for {len(probes)} experts, which were probed at {least}: expected from "
            f"{sum(least.values())} to {most * len(probes)}"
        )
    exact = _water_filled({name: probe.slope for name, probe in probes.items()}, least, total, most)
    steps = {name: int(value) for name, value in exact.items()}
    left = total - sum(steps.values())
    by_remainder = sorted(exact, key=lambda name: (steps[name] - exact[name], name))
    for name in itertools.islice(itertools.cycle(by_remainder), len(by_remainder) * 2):
        if left and steps[name] < most:
            steps[name] += 1
            left -= 1
    return steps


def _water_filled(
    slopes: Mapping[str, float], least: Mapping[str, int], total: int, most: int
) -> dict[str, float]:
    """clip(level * slope, least, most) at the level where the sum is `total`, by bisection."""

    def at(level: float) -> dict[str, float]:
        return {
            name: min(max(level * slope, float(least[name])), float(most))
            for name, slope in slopes.items()
        }

    low, high = 0.0, most / min(slopes.values())
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(at(middle).values()) < total:
            low = middle
        else:
            high = middle
    return at(low)
