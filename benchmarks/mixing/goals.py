"""Goals over replicates, and how far each is reached, with intervals. Pure.

Differences are in hundredths of a nat a label, as `coordinator.scoring.statistics` has them; limits
and what is shown are in percent of perplexity. Two intervals stand beside each other, because they
hold different noise. *documents*: a paired bootstrap over test documents, drawn alike for all
replicates, of the mean over replicates; it does not know how much training differs from training.
*replicates*: Student's t over the replicates' differences; the documents are the same in all.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import t as student

from coordinator.scoring.statistics import POINTS, DomainSums, Pair, compare


@dataclass(frozen=True)
class Goal:
    """`column` may be worse than `against` over a group of texts by `limit` percent at most."""

    title: str
    column: str
    against: str
    group: str
    limit: float


@dataclass(frozen=True)
class Reached:
    """By how many percent of perplexity `column` is above `against`: below 0 it is better.

    `each` holds the replicates, `mean` their mean; low and high are 95 % intervals.
    """

    goal: Goal
    each: tuple[float, ...]
    mean: float
    documents: tuple[float, float]
    replicates: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Of the mean and of both intervals together."""
        if self.mean > self.goal.limit:
            return "missed"
        highest = max(self.documents[1], self.replicates[1])
        return "reached" if highest <= self.goal.limit else "reached by the mean alone"


def reached(
    goals: Sequence[Goal],
    replicates: Sequence[Sequence[DomainSums]],
    groups: Mapping[str, Sequence[str]],
) -> list[Reached]:
    """How far each goal is reached; `replicates` hold the same texts, documents and columns.

    Raises ValueError for replicates of which one has other texts or documents than the first.
    """
    _check(replicates)
    pairs = sorted({(goal.column, goal.against) for goal in goals})
    each = [_by_pair(texts, pairs, groups) for texts in replicates]
    together = _by_pair(_mean(replicates), pairs, groups)
    found = []
    for goal in goals:
        key = (goal.column, goal.against, goal.group)
        points = [one[key][0] for one in each]
        mean = statistics.fmean(points)
        swing = _swing(points)
        found.append(
            Reached(
                goal=goal,
                each=tuple(map(percent, points)),
                mean=percent(mean),
                documents=(percent(together[key][1]), percent(together[key][2])),
                replicates=(percent(mean - swing), percent(mean + swing)),
            )
        )
    return found


def percent(points: float) -> float:
    """Percent of perplexity for a difference in hundredths of a nat."""
    return 100 * math.expm1(points / POINTS)


def _swing(values: Sequence[float]) -> float:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(student.ppf(0.975, len(values) - 1)) * error


def _by_pair(
    texts: Sequence[DomainSums], pairs: Sequence[Pair], groups: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    return {
        (one.a, one.b, one.where): (one.difference, one.low, one.high)
        for one in compare(texts, pairs, groups)
    }


def _mean(replicates: Sequence[Sequence[DomainSums]]) -> list[DomainSums]:
    """Each text's mean log-likelihoods over replicates: their differences are the mean ones."""
    return [
        DomainSums(
            domain=same[0].domain,
            sums={
                column: np.mean([one.sums[column] for one in same], axis=0)
                for column in same[0].sums
            },
            counts=same[0].counts,
            tied=(),
        )
        for same in zip(*replicates, strict=True)
    ]


def _check(replicates: Sequence[Sequence[DomainSums]]) -> None:
    for one, other in pairwise(replicates):
        alike = len(one) == len(other) and all(
            left.domain == right.domain and np.array_equal(left.counts, right.counts)
            for left, right in zip(one, other, strict=False)
        )
        if not alike:
            raise ValueError("replicates: other texts than in the first, expected the same")
