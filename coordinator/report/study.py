"""One run or its replicates as one thing to report: who is compared, where, with which scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from coordinator.report.replicates import Effects, effects_of
from coordinator.scoring.outcome import (
    ALL,
    DENSE_COLUMN,
    HELD_OUT,
    OWN,
    SEED_COLUMN,
    WITH_SEED,
    DomainScores,
    Measure,
    Results,
    Role,
)

ROLES: dict[Role, str] = {"trained": "own", "held-out": "held-out"}
"""The two groups of domains: those that experts were trained on, and those that nobody trained."""

GROUPS: dict[Role, str] = {"trained": OWN, "held-out": HELD_OUT}
"""What the same groups are called in comparisons."""

MEANS = {OWN: "mean of own", HELD_OUT: "mean of held-out", ALL: "mean of all"}


@dataclass(frozen=True)
class Study:
    """`runs` are replicates of each other, at least one. Values are means over them, of nats."""

    runs: tuple[Results, ...]

    @cached_property
    def effects(self) -> Effects:
        """What was compared in every run."""
        return effects_of(self.runs)

    @property
    def base(self) -> Results:
        """The run whose curves, traces and matrices are shown."""
        return self.runs[0]

    @property
    def schemes(self) -> tuple[str, ...]:
        """In the order of the run file; others are compared with the first."""
        return tuple(self.base.schemes)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The contestants that were measured on any domain of every run."""
        names = dict.fromkeys(name for one in self.base.domains for name in one.columns)
        return tuple(names)

    @cached_property
    def domains(self) -> tuple[DomainScores, ...]:
        """Own domains by round, then held-out ones; in the first run."""
        order = {role: number for number, role in enumerate(ROLES)}
        return tuple(
            sorted(self.base.domains, key=lambda one: (order[one.role], one.round or 0, one.domain))
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of domains over which anything was compared."""
        domains = {one.domain for one in self.domains}
        return tuple(place for place in self.effects.places() if place not in domains)

    def of_role(self, role: Role) -> tuple[str, ...]:
        """Domains of a role."""
        return tuple(one.domain for one in self.domains if one.role == role)

    def group_of(self, role: Role) -> str | None:
        """The group of all domains of a role, if anything was compared over it."""
        return GROUPS[role] if GROUPS[role] in self.groups else None

    def rivals(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each reference, and the columns to hold against it: as what they are, or with the seed.

        An ensemble with the seed as a further member is compared only with its like.
        """
        first, others = self.schemes[0], self.schemes[1:]
        found: list[tuple[str, tuple[str, ...]]] = []
        for ending in ("", WITH_SEED):
            found.append((first + ending, tuple(name + ending for name in others)))
            found.append((DENSE_COLUMN + ending, tuple(name + ending for name in self.schemes)))
        found.append((SEED_COLUMN, (DENSE_COLUMN, *self.schemes)))
        return tuple(found)

    def scores(self, domain: str) -> tuple[DomainScores, ...]:
        """One domain in every run."""
        return tuple(one for run in self.runs for one in run.domains if one.domain == domain)

    def measure(self, domain: str, column: str) -> Measure | None:
        """A column on a domain; None where some run has none."""
        return self._mean(domain, lambda scores: scores.columns.get(column))

    def mode(self, domain: str, scheme: str, mode: str) -> Measure | None:
        """One way to turn a scheme's experts into one model, on a domain."""
        return self._mean(
            domain,
            lambda scores: (
                scores.schemes[scheme].modes.get(mode) if scheme in scores.schemes else None
            ),
        )

    def member(self, domain: str, scheme: str, which: str) -> Measure | None:
        """The `best_single` or `oracle` expert of a scheme; each run has its own."""
        return self._mean(
            domain,
            lambda scores: (
                scores.models[getattr(scores.schemes[scheme], which)]
                if scheme in scores.schemes
                else None
            ),
        )

    def is_tied(self, domain: str, a: str, b: str) -> bool:
        """Whether two columns tie by construction on a domain, in every run."""
        found = self.scores(domain)
        return bool(found) and all(
            any(a in group and b in group for group in scores.tied) for scores in found
        )

    def _mean(
        self, domain: str, measured: Callable[[DomainScores], Measure | None]
    ) -> Measure | None:
        found = [measured(scores) for scores in self.scores(domain)]
        present = [one for one in found if one is not None]
        return mean_measure(present) if present and len(present) == len(found) else None


def place_name(where: str) -> str:
    """What people call a place of comparison: a domain, or the mean over a group of them."""
    return MEANS.get(where, where)


def mean_measure(measures: Sequence[Measure]) -> Measure:
    """The mean of nats: the geometric mean of perplexities, the arithmetic one of bits per byte."""
    count = len(measures)
    if count == 1:
        return measures[0]
    logs = math.fsum(math.log(one.perplexity) for one in measures)
    return Measure(
        perplexity=math.exp(logs / count),
        bits_per_byte=math.fsum(one.bits_per_byte for one in measures) / count,
    )
