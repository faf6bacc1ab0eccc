"""Tiny experts on one seed, and what routers know of their domains: what mixtures are made of."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llamas
import numpy as np
import torch

from protocol.specs import ModelShape, Trains
from shared import model as models
from shared.mixing.evidence import TokenCounts
from shared.mixing.ingredients import Ingredient
from shared.mixing.statistics import GRID, ExpertStatistics
from shared.tensorfiles import is_trained, read_header, read_tensors
from shared.text.vocabulary import FastModel, Vocabulary, open_vocabulary

SHAPE = ModelShape(
    vocab_size=llamas.VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=24,
    context_length=32,
    rope_theta=50_000.0,
    norm_eps=1e-5,
)
WIDTHS = {"python": 24, "law": 12, "sea": 16}


@functools.cache
def vocabulary() -> Vocabulary:
    text = llamas.byte_level().to_str()
    return open_vocabulary(FastModel(tokenizer_json=text, bos_id=1, eos_id=0).to_bytes())


def ingredient(path: Path, shape: ModelShape, *, name: str, **changes: Any) -> Ingredient:
    """The model in a file of ours as an ingredient."""
    tensors = read_tensors(path)
    values = {
        "name": name,
        "domain": "general" if name == "seed" else name,
        "shape": shape,
        "forms": {one: entry.form for one, entry in read_header(path).items()},
        "read": tensors.__getitem__,
        "vocabulary": "7" * 64,
        "origin": f"a test's {name}",
        "files": {"model.safetensors": "8" * 64},
    }
    return Ingredient(**{**values, **changes})


def seed(folder: Path, *, shape: ModelShape = SHAPE, scale: float = 10.0) -> Ingredient:
    """Random weights, larger than fresh ones, so that no part of the model is negligible."""
    path = folder / "seed.safetensors"
    if not path.exists():
        model = models.build(shape, rng_seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale if parameter.dim() == 2 else 1.0)
        models.save(model, path)
    return ingredient(path, shape, name="seed")


def expert(
    folder: Path, name: str, *, trains: Trains = "ffn", parts: Sequence[str] = (), **changes: Any
) -> Ingredient:
    """The seed of `folder` at the expert's width, with what it trains moved at random.

    `parts` are marks of further tensors that it moves. `seed` is the seed, if not the usual one.
    """
    base = changes.pop("seed", None) or seed(folder)
    shape = base.shape.model_copy(update={"ffn_width": WIDTHS[name]})
    model = models.load(folder / "seed.safetensors", shape)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            if is_trained(trains, tensor) or any(part in tensor for part in parts):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    path = folder / f"{name}-{trains}{len(parts)}.safetensors"
    models.save(model, path)
    return ingredient(path, shape, name=name, **changes)


def statistics(name: str, *, shape: ModelShape = SHAPE, positions: int = 60) -> ExpertStatistics:
    """Those of some random text, each name another."""
    rng = np.random.default_rng(list(name.encode()))
    counts = rng.integers(0, 40, shape.vocab_size).astype(np.int64)
    form = (shape.num_layers + 1, positions, shape.hidden_size)
    states = np.rint(rng.normal(rng.normal(size=(1, 1, form[2])), 1.0, form) / GRID) * GRID
    states = np.concatenate([states, np.ones((*form[:2], 1))], axis=2)
    return ExpertStatistics(TokenCounts(40, counts), states.swapaxes(1, 2) @ states)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
