"""Pure: log-likelihoods of test text to the results: contestants, modes, baselines, comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.scoring.ensembles import Ensemble, ShardScores, ensemble_sums
from coordinator.scoring.lineup import Contestants
from coordinator.scoring.outcome import (
    ALL,
    DENSE_COLUMN,
    HELD_OUT,
    OWN,
    SEED_COLUMN,
    WITH_SEED,
    Comparison,
    DomainScores,
    Measure,
    Role,
    SchemeScores,
    mode_name,
)
from coordinator.scoring.statistics import DomainSums, Pair, compare
from shared.ensemble import bits_per_byte, perplexity

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DomainText:
    """One domain's dev shard, to choose and to learn priors on, and test shard, to report on.

    `weight_averages` maps schemes to modes to the log-likelihoods of the test labels, [labels].
    """

    domain: str
    role: Role
    dev: ShardScores
    test: ShardScores
    weight_averages: Mapping[str, Mapping[str, NDArray[np.floating]]] = field(default_factory=dict)


def score_domain(text: DomainText, contestants: Contestants) -> tuple[DomainScores, DomainSums]:
    """All models, ensembles and weight averages on one domain's test text."""
    test = text.test
    counts = test.label_counts()
    models = {name: test.model_sums(name) for name in sorted(test.by_model)}
    ensembles = _ensembles(text, contestants)
    columns = {SEED_COLUMN: models[contestants.seed]}
    if contestants.dense is not None:
        columns[DENSE_COLUMN] = models[contestants.dense]
        with_seed = ensembles[contestants.dense, contestants.seed]
        columns[DENSE_COLUMN + WITH_SEED] = with_seed[mode_name("posterior")]
    modes: dict[str, dict[str, Floats]] = {}
    for scheme, members in contestants.members.items():
        modes[scheme] = _modes(ensembles, members, contestants.seed)
        for averaged, labels in text.weight_averages.get(scheme, {}).items():
            modes[scheme][averaged] = np.asarray(labels, dtype=np.float64)
        columns[scheme] = modes[scheme][mode_name("posterior")]
        columns[scheme + WITH_SEED] = modes[scheme][mode_name("posterior") + WITH_SEED]
    measured = _Measured(num_labels=test.num_labels, num_bytes=test.num_bytes)
    tied = tied_columns(text.domain, contestants)
    return (
        DomainScores(
            domain=text.domain,
            role=text.role,
            round=contestants.rounds.get(text.domain),
            difficulty=contestants.classes.get(text.domain),
            seed_dev_perplexity=perplexity(text.dev.by_model[contestants.seed]),
            num_documents=len(counts),
            num_labels=test.num_labels,
            num_bytes=test.num_bytes,
            columns=measured.all(columns),
            models=measured.all(models),
            schemes={
                scheme: SchemeScores(
                    modes=measured.all(modes[scheme]),
                    best_single=best_on(text.dev, members),
                    oracle=best_on(test, _measured_experts(test, contestants, scheme)),
                )
                for scheme, members in contestants.members.items()
            },
            tied=tied,
        ),
        DomainSums(domain=text.domain, sums=columns, counts=counts, tied=tied),
    )


def compare_all(
    domains: Sequence[DomainScores], sums: Sequence[DomainSums], contestants: Contestants
) -> tuple[Comparison, ...]:
    """What the report says of who is better, on every domain and over groups of them."""
    groups = {
        OWN: [one.domain for one in domains if one.role == "trained"],
        HELD_OUT: [one.domain for one in domains if one.role == "held-out"],
        ALL: [one.domain for one in domains],
    }
    return compare(sums, compared_pairs(contestants), groups)


def compared_pairs(contestants: Contestants) -> tuple[Pair, ...]:
    """Other schemes against the first, schemes against dense, like with like; all against the seed.

    Like with like: an ensemble with the seed as a member only against another one with it.
    """
    first, *others = contestants.schemes
    pairs: list[Pair] = []
    for ending in ("", WITH_SEED):
        pairs += [(scheme + ending, first + ending) for scheme in others]
        if contestants.dense is not None:
            dense = DENSE_COLUMN + ending
            pairs += [(scheme + ending, dense) for scheme in contestants.schemes]
            pairs.append((dense, SEED_COLUMN))
        pairs += [(scheme + ending, SEED_COLUMN) for scheme in contestants.schemes]
    return tuple(pairs)


def best_on(scores: ShardScores, models: Sequence[str]) -> str:
    """The model with the highest mean log-likelihood; of equals the first by name."""
    means = {model: float(scores.matrix([model]).mean()) for model in models}
    return min(models, key=lambda model: (-means[model], model))


def tied_columns(domain: str, contestants: Contestants) -> tuple[tuple[str, ...], ...]:
    """Groups of columns that tie by construction on `domain`: no scheme wins there.

    Where the expert that trained on the domain is a member, schemes tie if it is the same one in
    all of them: what still tells their ensembles apart is how little weight goes to the other
    domains' experts. Where it is none (it was trained on, along a lineage, or nobody trained on the
    domain), schemes tie if all of their members are the same.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for scheme, members in contestants.members.items():
        expert = contestants.experts[scheme].get(domain)
        basis = (expert,) if expert in members else members
        groups.setdefault(basis, []).append(scheme)
    tied = [tuple(group) for group in groups.values() if len(group) > 1]
    return tuple(tied + [tuple(scheme + WITH_SEED for scheme in group) for group in tied])


@dataclass(frozen=True)
class _Measured:
    """Sums of log-likelihoods, in whatever parts, to measures."""

    num_labels: int
    num_bytes: int

    def all(self, sums: Mapping[str, Floats]) -> dict[str, Measure]:
        return {name: self.one(values) for name, values in sums.items()}

    def one(self, sums: Floats) -> Measure:
        mean = np.full(1, sums.sum() / self.num_labels)
        return Measure(
            perplexity=perplexity(mean),
            bits_per_byte=bits_per_byte(mean * self.num_labels, self.num_bytes),
        )


def _ensembles(
    text: DomainText, contestants: Contestants
) -> dict[tuple[str, ...], dict[str, Floats]]:
    """Members to modes to sums over documents; each different ensemble is computed once."""
    wanted = dict.fromkeys(contestants.members.values())
    wanted |= dict.fromkeys((*members, contestants.seed) for members in list(wanted))
    if contestants.dense is not None:
        wanted[contestants.dense, contestants.seed] = None
    ensembles = [Ensemble.of(members, text.dev) for members in wanted]
    computed = ensemble_sums(text.test, ensembles)
    return {one.members: sums for one, sums in zip(ensembles, computed, strict=True)}


def _modes(
    ensembles: Mapping[tuple[str, ...], Mapping[str, Floats]], members: tuple[str, ...], seed: str
) -> dict[str, Floats]:
    with_seed = ensembles[(*members, seed)]
    return {
        **ensembles[members],
        **{name + WITH_SEED: sums for name, sums in with_seed.items()},
    }


def _measured_experts(scores: ShardScores, contestants: Contestants, scheme: str) -> list[str]:
    names = {*contestants.experts[scheme].values(), *contestants.members[scheme]}
    return sorted(name for name in names if name in scores.by_model)
