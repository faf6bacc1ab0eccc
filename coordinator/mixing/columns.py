"""Pure: log-likelihoods of texts to columns of a table: models, ensembles, groups, comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.mixing.outcome import (
    DENSE_COLUMN,
    ENSEMBLE,
    GROUPS,
    HELD_OUT,
    OWN,
    SEED_COLUMN,
    SPLICED,
    WITH_SEED,
    ChooseBy,
    Group,
)
from coordinator.mixing.texts import Text, TextRole
from coordinator.scoring.ensembles import ShardScores, mean_posterior
from coordinator.scoring.outcome import Comparison
from coordinator.scoring.statistics import DomainSums, Pair, compare
from shared.ensemble import perplexity, posterior_ensemble

GROUP_OF: dict[TextRole, Group] = {"trained": OWN, "held-out": HELD_OUT, "spliced": SPLICED}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Who is measured: names of models in `ShardScores`, and of the members of the ensemble."""

    seed: str
    dense: str | None
    members: tuple[str, ...]


def column_labels(scores: ShardScores, line: Line) -> dict[str, Floats]:
    """The labels of one text under every column of models and ensembles, fp64 [labels] each.

    Ensembles are posterior ones with a uniform prior. Models of `scores` that are none of the
    seed, the dense baseline and the members are columns under their own names.
    """
    columns = {SEED_COLUMN: _rows(scores, line.seed)}
    ensembles = {ENSEMBLE: line.members, ENSEMBLE + WITH_SEED: (*line.members, line.seed)}
    if line.dense is not None:
        columns[DENSE_COLUMN] = _rows(scores, line.dense)
        ensembles[DENSE_COLUMN + WITH_SEED] = (line.dense, line.seed)
    for name, members in ensembles.items():
        columns[name] = posterior_ensemble(scores.matrix(members), scores.starts)
    named = {line.seed, line.dense, *line.members}
    columns |= {name: _rows(scores, name) for name in scores.by_model if name not in named}
    return columns


def document_sums(text: Text, scores: ShardScores, columns: Mapping[str, Floats]) -> DomainSums:
    """Sums over the text's documents, for intervals."""
    return DomainSums(
        domain=text.name,
        sums={
            name: scores.by_document(np.add.reduceat(labels, scores.starts))
            for name, labels in columns.items()
        },
        counts=scores.label_counts(),
        tied=(),
    )


def groups_of(texts: Sequence[Text]) -> dict[Group, tuple[str, ...]]:
    """The texts of each group that has any, by name."""
    found = {
        group: tuple(text.name for text in texts if GROUP_OF[text.role] == group)
        for group in GROUPS
    }
    return {group: names for group, names in found.items() if names}


def geometric_means(
    perplexities: Mapping[str, float], groups: Mapping[Group, Sequence[str]]
) -> dict[Group, float]:
    """The geometric mean over each group's texts: no text outweighs the others."""
    return {
        group: float(np.exp(np.mean([np.log(perplexities[name]) for name in names])))
        for group, names in groups.items()
    }


def rating(groups: Mapping[Group, float], choose_by: ChooseBy) -> float:
    """What is least for the best variant."""
    if choose_by == "own":
        return groups[OWN]
    return float(np.exp(np.mean(np.log(list(groups.values())))))


def text_perplexities(columns: Mapping[str, Floats]) -> dict[str, float]:
    """Perplexity by column."""
    return {name: perplexity(labels) for name, labels in columns.items()}


def best_single(dev: Sequence[ShardScores], members: Sequence[str]) -> str:
    """The one member with the lowest geometric mean of perplexities over texts.

    Of equals the first by name.
    """
    losses = {name: float(np.mean([-_rows(one, name).mean() for one in dev])) for name in members}
    return min(members, key=lambda name: (losses[name], name))


def mean_shares(dev: Sequence[ShardScores], members: Mapping[str, str]) -> dict[str, float]:
    """Each member's mean posterior over the labels of each text, then over the texts.

    `members` maps what they are called in the mixture to their models in `dev`.
    """
    models = list(members.values())
    found = [mean_posterior(models, one) for one in dev]
    return {name: float(np.mean([one[model] for one in found])) for name, model in members.items()}


def comparisons(
    sums: Sequence[DomainSums],
    groups: Mapping[Group, Sequence[str]],
    mixtures: Sequence[str],
) -> tuple[Comparison, ...]:
    """Every mixture against every other column, on each text and over each group of them."""
    others = [name for name in sums[0].sums if name not in mixtures]
    where: dict[str, Sequence[str]] = {str(group): names for group, names in groups.items()}
    return compare(sums, list(_pairs(mixtures, others)), where)


def _pairs(mixtures: Sequence[str], others: Sequence[str]) -> Iterator[Pair]:
    for mixture in mixtures:
        yield from ((mixture, other) for other in others)


def _rows(scores: ShardScores, model: str) -> Floats:
    return np.asarray(scores.by_model[model], dtype=np.float64)
