"""Ratios of pairs that were measured one right after the other, with their interval. Pure.

What slows a machine down for a while slows both of a pair, and leaves their ratio alone. Ratios are
multiplied, not added, so mean and interval are taken of their logarithms.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of `pairs` ratios, and its 95 % interval by Student's t on their logs."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} (95 %: {self.low:.3f} to {self.high:.3f}; {self.pairs} pairs)"


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of above[i] / below[i]. Raises ValueError unless both hold the same two or more positives."""
    if len(above) != len(below) or len(above) < 2:
        raise ValueError(f"pairs: {len(above)} and {len(below)} values, expected at least 2 each")
    if min(*above, *below) <= 0:
        raise ValueError(f"pairs: {min(*above, *below)}, expected values above 0")
    logs = [math.log(one / other) for one, other in zip(above, below, strict=True)]
    mean = statistics.fmean(logs)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    swing = float(student.ppf(0.975, len(logs) - 1)) * error
    return Ratio(
        mean=math.exp(mean),
        low=math.exp(mean - swing),
        high=math.exp(mean + swing),
        pairs=len(logs),
    )


def turns(names: Sequence[str], rounds: int, *, rng_seed: int) -> list[list[str]]:
    """Who goes first, second, ... in each round: shuffled, the same for the same seed."""
    draw = random.Random(rng_seed)
    return [draw.sample(list(names), k=len(names)) for _ in range(rounds)]
