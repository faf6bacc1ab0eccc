"""Comparisons of one run, or over replicates of it. Pure.

Within a run an interval is a bootstrap over test documents, which knows nothing of the noise of
training. Over replicates it is Student's t, which knows of nothing else.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit

from coordinator.scoring.outcome import Comparison, Results, Verdict

CONFIDENCE = 0.95
FEW = 10
"""Below so many replicates, the interval itself is uncertain, and we say so."""

_TURNED: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Effect:
    """Column `a` against column `b`, as `Comparison` has it; `each` has every run's own.

    With several runs, `difference` is their mean, `spread` their standard deviation, and `low` and
    `high` bound the mean with 95 % confidence by Student's t.
    """

    a: str
    b: str
    where: str
    num_domains: int
    difference: float
    low: float
    high: float
    verdict: Verdict
    spread: float | None
    each: tuple[Comparison, ...]

    def turned(self) -> "Effect":
        """`b` against `a`."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            verdict=_TURNED.get(self.verdict, self.verdict),
        )


class Effects:
    """All comparisons of a report, found by their two columns and where."""

    def __init__(self, effects: Iterable[Effect]) -> None:
        self.all = tuple(effects)
        self._by_key = {(one.a, one.b, one.where): one for one in self.all}

    def between(self, a: str, b: str, where: str) -> Effect | None:
        """`a` against `b`, also where only `b` against `a` was computed; None if neither was."""
        found = self._by_key.get((a, b, where))
        if found is None and (other := self._by_key.get((b, a, where))) is not None:
            return other.turned()
        return found

    def places(self) -> tuple[str, ...]:
        """Where anything was compared: domains, and names of groups of domains."""
        return tuple(dict.fromkeys(one.where for one in self.all))


def effects_of(runs: Sequence[Results]) -> Effects:
    """What was compared in all of `runs`, in the order of the first."""
    tables = [{(one.a, one.b, one.where): one for one in run.comparisons} for run in runs]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return Effects(combined([table[key] for table in tables]) for key in shared)


def combined(each: Sequence[Comparison]) -> Effect:
    """The same comparison in every replicate, as one."""
    first = each[0]
    if len(each) == 1:
        mean, low, high, spread = first.difference, first.low, first.high, None
    else:
        differences = [one.difference for one in each]
        mean, low, high = student_interval(differences)
        spread = statistics.stdev(differences)
    return Effect(
        a=first.a,
        b=first.b,
        where=first.where,
        num_domains=first.num_domains,
        difference=mean,
        low=low,
        high=high,
        verdict=verdict_of(each, low=low, high=high),
        spread=spread,
        each=tuple(each),
    )


def student_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of at least two `values`: mean -+ t s / sqrt(n), with n - 1 degrees."""
    count = len(values)
    mean = math.fsum(values) / count
    reach = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values)
    reach /= math.sqrt(count)
    return mean, mean - reach, mean + reach


def verdict_of(each: Sequence[Comparison], *, low: float, high: float) -> Verdict:
    """A tie by construction in all of them, else what the interval says.

    One run alone may be called unclear although its interval is on one side, but never the reverse.
    """
    if all(one.verdict == "tie" for one in each):
        return "tie"
    allowed = {each[0].verdict} if len(each) == 1 else {"better", "worse"}
    if high < 0 and "better" in allowed:
        return "better"
    return "worse" if low > 0 and "worse" in allowed else "unclear"
