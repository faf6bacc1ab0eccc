"""What an experiment over replicates has fixed, and the finished runs that it speaks of."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coordinator.mixing.run import FinishedRun
from protocol.values import Items, Positive, Value
from shared.mixing.recipe import Recipe, make_recipe

EXPERIMENT = Path(__file__).with_name("experiment.toml")

ALL, SHARED = "all", "ffn_embeddings"
"""The regimes: what the experts of a run may train."""


class QualityError(Exception):
    """The runs are not those of the experiment; the message names what differs."""


class Experiment(Value):
    """The domains, sizes and levers that were fixed; `variants` are recipes of mixtures by name.

    Variants are chosen on the first `dev_tokens` of each dev shard, in whole documents, and those
    that are chosen, and the `default`, are measured on the first `test_tokens` of each test shard.
    """

    scheme: str
    trained: Items[str]
    alike: Items[str]
    held_out: Items[str]
    widths: Items[Positive]
    expert_steps: Positive
    control_learning_rate: float
    dev_tokens: Positive
    test_tokens: Positive
    default: str
    variants: Mapping[str, Mapping[str, Any]]

    def recipes(self) -> dict[str, Recipe]:
        """The variants' recipes. Raises MixingError for what no recipe has."""
        return {name: make_recipe(values) for name, values in self.variants.items()}


def read_experiment(path: Path = EXPERIMENT) -> Experiment:
    """Raises QualityError naming the file and the first field that is wrong."""
    try:
        return Experiment.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise QualityError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(map(str, item["loc"]))
        raise QualityError(f"{path}: {key}: {item['msg']}") from error


def open_regime(
    experiment: Experiment, paths: Sequence[Path], *, trains: str
) -> tuple[FinishedRun, ...]:
    """The finished runs of one regime, in the order of their random numbers.

    Raises QualityError for a run that is not of the experiment, or of another regime, and
    MixingError for one that is not finished.
    """
    runs = sorted(map(FinishedRun.open, paths), key=lambda run: run.results.rng_seed)
    for run in runs:
        members = run.members(experiment.scheme)
        found: dict[str, object] = {
            "trained": sorted(run.trained),
            "held_out": sorted(run.held_out),
            "widths": sorted({one.checkpoint.shape.ffn_width for one in members}),
            "expert_steps": sorted({one.facts.train.num_steps for one in members}),
            "trains": run.run.recipe.trains,
        }
        expected: dict[str, object] = {
            "trained": sorted(experiment.trained),
            "held_out": sorted(experiment.held_out),
            "widths": sorted(experiment.widths),
            "expert_steps": [experiment.expert_steps],
            "trains": trains,
        }
        if trains == ALL:
            rate = None if run.dense is None else run.dense.facts.train.peak_learning_rate
            found["control_learning_rate"] = rate
            expected["control_learning_rate"] = experiment.control_learning_rate
        for key, value in expected.items():
            if found[key] != value:
                raise QualityError(
                    f"{run.folders.root}: {key} {found[key]}, expected {value} as in the experiment"
                )
    return tuple(runs)


def check_pairs(one: Sequence[FinishedRun], other: Sequence[FinishedRun]) -> None:
    """Raises QualityError unless both regimes have the same replicates, over the same text."""
    seeds = [[run.results.rng_seed for run in runs] for runs in (one, other)]
    if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]):
        raise QualityError(f"rng_seed {seeds[0]} and {seeds[1]}: expected the same, each once")
    if len(seeds[0]) < 2:
        raise QualityError(f"{len(seeds[0])} replicates: expected at least 2")
    texts = {
        str(sorted(shard.blob.digest for shard in run.prepared.shards)) for run in (*one, *other)
    }
    if len(texts) != 1:
        raise QualityError("the runs' shards differ: expected replicates over the same text")
