"""What experts of a mixture share: the seed's weights, or the mean of their own. NumPy, no torch.

Means are taken one tensor at a time, in fp64 and in the order of the experts. FFNs in layers that
have no experts may be of unequal width, of which the narrower ones are the first units of the wider
ones, as with a nested seed: the mean is as wide as the widest, and each unit is the mean over the
experts that have it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from shared.mixing.ingredients import Floats, Ingredient, MixingError, Reader, untied
from shared.mixing.names import part_of
from shared.mixing.recipe import Recipe
from shared.tensorfiles import model_tensors

_ROWS = 1024
"""Of a tensor, so many are added at a time: fp64 copies of large ones would double memory."""


def shared_reader(recipe: Recipe, seed: Ingredient, experts: Sequence[Ingredient]) -> Reader:
    """A reader of the weights that are no expert's, by their names in a Llama.

    Raises MixingError where the recipe's shares are not those of exactly these experts.
    """
    if recipe.shared_from == "seed":
        return untied(seed.read, seed.forms)
    return _mean_reader(experts, _shares(recipe, experts))


def shared_width(recipe: Recipe, seed: Ingredient, experts: Sequence[Ingredient]) -> int:
    """The FFN width in layers that have no experts."""
    if recipe.shared_from == "seed":
        return seed.shape.ffn_width
    return max(one.shape.ffn_width for one in experts)


def _shares(recipe: Recipe, experts: Sequence[Ingredient]) -> Mapping[str, float]:
    names = [one.name for one in experts]
    if recipe.shared_from == "average":
        return dict.fromkeys(names, 1.0)
    if recipe.shares.keys() != set(names):
        name = sorted(recipe.shares.keys() ^ set(names))[0]
        problem = "missing" if name in names else "no expert is called so"
        raise MixingError(f"shares.{name}: {problem}, expected those of {names}")
    return recipe.shares


def _mean_reader(experts: Sequence[Ingredient], shares: Mapping[str, float]) -> Reader:
    readers = [(untied(one.read, one.forms), shares[one.name]) for one in experts]
    widest = max(one.shape.ffn_width for one in experts)
    shape = experts[0].shape.model_copy(update={"ffn_width": widest, "tied_embeddings": False})
    forms = model_tensors(shape)

    def read(name: str) -> Floats:
        extents, axis = forms[name][1], _unit_axis(name)
        total = np.zeros(extents, dtype=np.float64)
        weights = np.zeros([extent if dim == axis else 1 for dim, extent in enumerate(extents)])
        for read_one, share in readers:
            tensor = read_one(name)
            there = tuple(slice(0, extent) for extent in tensor.shape)
            part = total[there]
            for start in range(0, len(tensor), _ROWS):
                rows = slice(start, start + _ROWS)
                part[rows] += share * tensor[rows].astype(np.float64)
            weights[there] += share
        total /= weights
        return total.astype("<f4")

    return read


def _unit_axis(name: str) -> int | None:
    """The dimension that an FFN's units lie along; None for a tensor of another part."""
    if part_of(name) != "ffn":
        return None
    return 1 if name.endswith(".down_proj.weight") else 0
