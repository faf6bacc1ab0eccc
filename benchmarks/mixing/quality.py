"""Mixtures of a whole experiment: variants on dev text, the chosen ones on test text once.

Replicates are runs with other random numbers over the same text, each once for every regime.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.mixing.experiment import ALL, Experiment, QualityError
from benchmarks.mixing.goals import Goal, Reached, reached
from benchmarks.mixing.ground import ByText, Ground, together
from coordinator.mixing.columns import (
    document_sums,
    geometric_means,
    rating,
    text_perplexities,
)
from coordinator.mixing.outcome import ChooseBy, Group
from coordinator.mixing.run import FinishedRun
from coordinator.scoring.statistics import DomainSums
from protocol.blobs import Split

Regimes = Mapping[str, Sequence[FinishedRun]]
Means = dict[Group, float]
Say = Callable[[str], None]

CHOICES: tuple[ChooseBy, ...] = ("own", "all")
_ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Levers:
    """One regime's columns and variants on dev text: geometric means by group, by replicate.

    `refused` says which variants cannot be made, and why. `chosen` is the best by each rating.
    """

    regime: str
    columns: Mapping[str, tuple[Means, ...]]
    variants: Mapping[str, tuple[Means, ...]]
    refused: Mapping[str, str]
    chosen: Mapping[ChooseBy, str]


@dataclass(frozen=True)
class Quality:
    """All that was found: levers on dev text; on test text the goals, and perplexities by replicate
    (group to column, and text to column).
    """

    levers: tuple[Levers, ...]
    goals: tuple[Reached, ...] = ()
    perplexity: tuple[dict[Group, dict[str, float]], ...] = ()
    texts: tuple[dict[str, dict[str, float]], ...] = ()


def choose(experiment: Experiment, regime: str, runs: Sequence[FinishedRun], *, say: Say) -> Levers:
    """The variants on the beginnings of dev shards. Raises QualityError where none can be made."""
    columns: dict[str, list[Means]] = {}
    variants: dict[str, list[Means]] = {}
    refused: dict[str, str] = {}
    for run in runs:
        ground = _ground(experiment, run, "dev")
        mixtures, refused = ground.mixtures(experiment.recipes())
        for found, labels in ((columns, ground.columns()), (variants, mixtures)):
            for name, means in _means(labels, ground.groups).items():
                found.setdefault(name, []).append(means)
        say(f"{run.folders.root.name}: {len(variants)} variants on dev text")
    if not variants:
        raise QualityError(f"{regime}: no variant can be made: {refused}")
    return Levers(
        regime=regime,
        columns={name: tuple(means) for name, means in columns.items()},
        variants={name: tuple(means) for name, means in variants.items()},
        refused=refused,
        chosen={
            by: min(variants, key=lambda name: (_mean_rating(variants[name], by), name))
            for by in CHOICES
        },
    )


def on_test(
    experiment: Experiment, regimes: Regimes, levers: Sequence[Levers], *, say: Say
) -> Quality:
    """The chosen variants, and all that they are to stand beside, on test text.

    The control is the dense baseline of the regime whose experts train everything.
    """
    sums: list[list[DomainSums]] = []
    by_group: list[dict[Group, dict[str, float]]] = []
    by_text: list[dict[str, dict[str, float]]] = []
    groups: Mapping[Group, Sequence[str]] = {}
    for number in range(len(regimes[ALL])):
        parts = []
        for one in sorted(levers, key=lambda one: one.regime == ALL):
            ground = _ground(experiment, regimes[one.regime][number], "test")
            parts.append(_test_columns(experiment, ground, one))
            groups = ground.groups
            say(f"{ground.run.folders.root.name}: on test text")
        labels = together(parts)
        sums.append(
            [document_sums(text, ground.shape_of(text), labels[text.name]) for text in ground.texts]
        )
        by_text.append({name: text_perplexities(columns) for name, columns in labels.items()})
        means = _means(labels, groups)
        by_group.append(
            {group: {name: one[group] for name, one in means.items()} for group in groups}
        )
    goals = [goal for one in levers for goal in goals_of(experiment, one)]
    return Quality(
        levers=tuple(levers),
        goals=tuple(reached(goals, sums, {str(group): names for group, names in groups.items()})),
        perplexity=tuple(by_group),
        texts=tuple(by_text),
    )


def on_show(experiment: Experiment, levers: Levers) -> tuple[str, ...]:
    """The variants that are measured on test text: those that were chosen, and the default."""
    return tuple(dict.fromkeys([*levers.chosen.values(), experiment.default]))


def goals_of(experiment: Experiment, levers: Levers) -> list[Goal]:
    """The goals of each mixture of one regime that is measured on test text."""
    found = []
    for variant in on_show(experiment, levers):
        column = mixture_column(levers.regime, variant)
        found += [
            Goal("its own ensemble", column, f"{_ENSEMBLE} ({levers.regime})", "own", 2.0),
            Goal("the best ensemble", column, f"{_ENSEMBLE} ({ALL})", "own", 8.0),
            Goal("the dense control", column, "dense", "own", 0.0),
            Goal("spliced: the dense control", column, "dense", "spliced", 5.0),
            Goal("held out: the seed", column, "seed", "held-out", 10.0),
        ]
    return found


def mixture_column(regime: str, variant: str) -> str:
    """What a mixture's column is called."""
    return f"mixture ({regime}): {variant}"


def _ground(experiment: Experiment, run: FinishedRun, split: Split) -> Ground:
    most = experiment.dev_tokens if split == "dev" else experiment.test_tokens
    return Ground(run, experiment.scheme, split, most=most)


def _test_columns(experiment: Experiment, ground: Ground, levers: Levers) -> ByText:
    recipes = experiment.recipes()
    wanted = {
        mixture_column(levers.regime, name): recipes[name] for name in on_show(experiment, levers)
    }
    mixtures, refused = ground.mixtures(wanted)
    if refused:
        raise QualityError(f"{ground.run.folders.root}: {refused}")
    columns = {
        text: {
            f"{name} ({levers.regime})" if name.startswith(_ENSEMBLE) else name: labels
            for name, labels in found.items()
        }
        for text, found in ground.columns().items()
    }
    return together([columns, mixtures])


def _means(labels: ByText, groups: Mapping[Group, Sequence[str]]) -> dict[str, Means]:
    by_text = {text: text_perplexities(columns) for text, columns in labels.items()}
    columns = list(next(iter(by_text.values())))
    return {
        name: geometric_means({text: row[name] for text, row in by_text.items()}, groups)
        for name in columns
    }


def _mean_rating(means: Sequence[Means], by: ChooseBy) -> float:
    return float(np.mean([np.log(rating(one, by)) for one in means]))
