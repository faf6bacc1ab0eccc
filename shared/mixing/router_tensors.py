"""A router's tensors as a mixture's file holds them, from its recipe and what is known. NumPy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protocol.specs import ModelShape
from shared.mixing.evidence import StatisticsError, log_likelihood_table
from shared.mixing.ingredients import MixingError
from shared.mixing.recipe import Recipe
from shared.mixing.routers import degeneracy, hidden_rows, noisy_rows, prompt_rows, ridge_rows
from shared.mixing.statistics import ExpertStatistics

LIKELIHOODS = "model.router.log_likelihoods"
"""The table of the prefix router: float32 [vocab, experts], no weight but a buffer."""

_STD = 0.02
_FINE = ("gate_proj", "up_proj", "down_proj")

Arrays = Mapping[str, npt.NDArray[np.float32]]
Thing = TypeVar("Thing")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """What is known of the experts' domains, by the experts' names.

    `prompts` are hidden states of prompts, averaged over them, less those of negative ones: fp64
    [layers + 1, hidden], of the embedded tokens and of the input of each layer's FFN.
    """

    statistics: Mapping[str, ExpertStatistics]
    prompts: Mapping[str, Floats]


def router_tensors(recipe: Recipe, names: Sequence[str], shape: ModelShape, known: Known) -> Arrays:
    """The tensors, float32, of the router for the experts called `names`, in this order.

    Raises MixingError, naming the expert, where something has to be known that is not.
    """
    router = recipe.router
    try:
        if router.kind == "gateless":
            return {}
        if router.kind == "prefix":
            counts = [_of(name, known.statistics, "counts").tokens for name in names]
            table = log_likelihood_table(counts, smoothing=router.smoothing)
            return {LIKELIHOODS: table}
        if router.kind == "deep":
            return _deep(recipe, names, shape)
        return _linear(recipe, names, shape, known)
    except StatisticsError as error:
        raise MixingError(f"router.source {router.source!r}: {error}") from error


def check_statistics(shape: ModelShape, names: Sequence[str], known: Known) -> None:
    """Raises MixingError for what is known of no expert, and for that of another model."""
    for name in sorted((known.statistics.keys() | known.prompts.keys()) - set(names)):
        raise MixingError(f"statistics of {name!r}: no expert is called so, expected {list(names)}")
    form = (shape.num_layers + 1, shape.hidden_size + 1, shape.hidden_size + 1)
    for name, one in known.statistics.items():
        if one.tokens.vocab_size != shape.vocab_size:
            raise MixingError(
                f"statistics of {name!r}: of {one.tokens.vocab_size} tokens, expected those of the "
                f"vocabulary of {shape.vocab_size}"
            )
        if one.hidden is not None and one.hidden.shape != form:
            raise MixingError(
                f"statistics of {name!r}: hidden states {one.hidden.shape}, expected {form}"
            )
    for name, states in known.prompts.items():
        if states.shape != (shape.num_layers + 1, shape.hidden_size):
            raise MixingError(
                f"prompts of {name!r}: hidden states {states.shape}, expected "
                f"{(shape.num_layers + 1, shape.hidden_size)}"
            )


def find_degeneracy(recipe: Recipe, names: Sequence[str], tensors: Arrays) -> str | None:
    """What is wrong with rows that were made from text and are too much alike, in words."""
    if recipe.router.source not in ("hidden", "prompts", "ridge"):
        return None
    rows = [tensor for name, tensor in tensors.items() if name.endswith(".weight")]
    return degeneracy(np.stack(rows).astype(np.float64), names)


def _linear(recipe: Recipe, names: Sequence[str], shape: ModelShape, known: Known) -> Arrays:
    parts = _FINE if recipe.router.kind == "fine" else ("",)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for part in parts:
        rows, biases = _rows(recipe, names, shape, known=known, part=part)
        for index, place in _places(recipe, shape):
            router = ".".join(filter(None, (place, part)))
            tensors[f"{router}.weight"] = rows[index].astype("<f4")
            if recipe.router.bias:
                tensors[f"{router}.bias"] = biases[index].astype("<f4")
    return tensors


def _rows(
    recipe: Recipe, names: Sequence[str], shape: ModelShape, *, known: Known, part: str
) -> tuple[Floats, Floats]:
    """Rows fp64 [layers + 1, experts, hidden] and biases [layers + 1, experts]."""
    router = recipe.router
    biases = np.zeros((shape.num_layers + 1, len(names)))
    if router.source == "noisy":
        return _noise([f"{name}{part}" for name in names], recipe, shape.hidden_size, shape), biases
    if router.source == "prompts":
        return prompt_rows({name: _of(name, known.prompts, "prompts") for name in names}), biases
    statistics = {name: _of(name, known.statistics, "hidden states") for name in names}
    if router.source == "hidden":
        return hidden_rows(statistics), biases
    found = ridge_rows(statistics, strength=router.ridge, bias=router.bias)
    return found.rows, found.biases


def _deep(recipe: Recipe, names: Sequence[str], shape: ModelShape) -> Arrays:
    features = recipe.router.hidden_size or shape.hidden_size
    numbers = [f"feature {number}" for number in range(features)]
    hidden = _noise(numbers, recipe, shape.hidden_size, shape)
    out = _noise(names, recipe, features, shape)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for index, place in _places(recipe, shape):
        tensors[f"{place}.hidden.weight"] = hidden[index].astype("<f4")
        tensors[f"{place}.out.weight"] = out[index].astype("<f4")
    return tensors


def _noise(names: Sequence[str], recipe: Recipe, size: int, shape: ModelShape) -> Floats:
    return noisy_rows(
        names,
        rng_seed=recipe.router.rng_seed,
        num_layers=shape.num_layers,
        hidden_size=size,
        std=_STD,
    )


def _places(recipe: Recipe, shape: ModelShape) -> list[tuple[int, str]]:
    """Where routers are, and which rows they have: 0 for embedded tokens, l + 1 for layer l."""
    if recipe.router.kind == "global":
        return [(0, "model.router")]
    layers = range(shape.num_layers) if recipe.expert_layers is None else recipe.expert_layers
    return [(layer + 1, f"model.layers.{layer}.mlp.router") for layer in layers]


def _of(name: str, known: Mapping[str, Thing], what: str) -> Thing:
    if name not in known:
        raise StatisticsError(f"{what}: none for {name!r}, expected those of each expert")
    return known[name]
