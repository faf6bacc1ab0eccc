"""Pure: sums over documents to comparisons with intervals: a paired bootstrap over documents.

A resample draws, within each domain, as many test documents as it has, with replacement, and all
columns are read on the same ones. Over a group of domains it is the mean of the domains' means, so
that a domain with much text does not outweigh the others. The noise of training is not in these
intervals: replicates with another rng_seed are for that.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.scoring.outcome import Comparison, Verdict
from shared.ensemble import resampled_means

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
POINTS = 100.0
"""Differences are in hundredths of a nat a label: about percent of perplexity."""

Floats = NDArray[np.float64]
Pair = tuple[str, str]


@dataclass(frozen=True)
class DomainSums:
    """Log-likelihoods of one domain's test documents by column, fp64 [documents], in nats.

    `counts` are their labels; `tied` groups of columns that tie by construction.
    """

    domain: str
    sums: Mapping[str, Floats]
    counts: Floats
    tied: tuple[tuple[str, ...], ...]

    def is_tied(self, pair: Pair) -> bool:
        """Whether both columns rest on the same expert here."""
        return any(set(pair) <= set(group) for group in self.tied)


def compare(
    domains: Sequence[DomainSums], pairs: Sequence[Pair], groups: Mapping[str, Sequence[str]]
) -> tuple[Comparison, ...]:
    """Every pair of columns on every domain, then over every group of domains that is not empty."""
    found: list[Comparison] = []
    joint = {group: _Group([], np.zeros(len(pairs)), np.zeros((0, 0))) for group in groups}
    for one in domains:
        differences, resampled = _differences(one, pairs)
        found += _comparisons(pairs, one.domain, [one], differences, resampled)
        for group, names in groups.items():
            if one.domain in names:
                joint[group] = joint[group].extended(one, differences, resampled)
    for group, so_far in joint.items():
        count = len(so_far.domains)
        if count:
            means = so_far.differences / count, so_far.resampled / count
            found += _comparisons(pairs, group, so_far.domains, *means)
    return tuple(found)


@dataclass(frozen=True)
class _Group:
    """Domains and the sums over them of their differences, and of their resampled ones."""

    domains: list[DomainSums]
    differences: Floats
    resampled: Floats

    def extended(self, one: DomainSums, differences: Floats, resampled: Floats) -> "_Group":
        return _Group(
            [*self.domains, one],
            self.differences + differences,
            self.resampled + resampled if self.domains else resampled,
        )


def _differences(one: DomainSums, pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """Of each pair, in points, lower is better: [pairs], and resampled [resamples, pairs]."""
    columns = list(one.sums)
    sums = np.stack([one.sums[column] for column in columns], axis=1)
    rng_seed = [BOOTSTRAP_SEED, _number(one.domain)]
    means = resampled_means(sums, one.counts, rng_seed=rng_seed, num_resamples=NUM_RESAMPLES)
    left = [columns.index(a) for a, _ in pairs]
    right = [columns.index(b) for _, b in pairs]
    total = sums.sum(axis=0) / one.counts.sum()
    return POINTS * (total[right] - total[left]), POINTS * (means[:, right] - means[:, left])


def _comparisons(
    pairs: Sequence[Pair],
    where: str,
    domains: Sequence[DomainSums],
    differences: Floats,
    resampled: Floats,
) -> list[Comparison]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    can_tell = all(len(one.counts) > 1 for one in domains)
    return [
        Comparison(
            a=pair[0],
            b=pair[1],
            where=where,
            num_domains=len(domains),
            difference=float(differences[index]),
            low=float(low[index]),
            high=float(high[index]),
            verdict="tie"
            if all(one.is_tied(pair) for one in domains)
            else _verdict(low[index], high[index], can_tell=can_tell),
        )
        for index, pair in enumerate(pairs)
    ]


def _verdict(low: float, high: float, *, can_tell: bool) -> Verdict:
    """Unclear where 0 is inside, and where a single document leaves nothing to resample."""
    if can_tell and high < 0:
        return "better"
    return "worse" if can_tell and low > 0 else "unclear"


def _number(domain: str) -> int:
    """Different domains must draw differently, and alike in every run."""
    return int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "big")
