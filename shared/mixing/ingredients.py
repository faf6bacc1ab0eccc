"""What a mixture is made of: Llamas that are read one tensor at a time. NumPy, no torch."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from protocol.ids import DomainId
from protocol.specs import ModelShape
from shared.mixing.names import part_of
from shared.tensorfiles import TensorForm, model_tensors

SEED = "seed"
"""What the seed is called where it is one more expert; no other expert is called so."""

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CHUNK = 1 << 22
_FIRST_PROJECTION = "model.layers.0.self_attn.q_proj.weight"
_COMPUTED_OTHERWISE = {
    "vocab_size": _EMBEDDINGS,
    "hidden_size": _EMBEDDINGS,
    "num_heads": _FIRST_PROJECTION,
    "kv_heads": "model.layers.0.self_attn.k_proj.weight",
    "rope_theta": _FIRST_PROJECTION,
    "norm_eps": "model.layers.0.input_layernorm.weight",
    "tied_embeddings": _HEAD,
}
"""What must be the same, and the first tensor that means something else where it is not."""

Floats = npt.NDArray[np.float32]
Reader = Callable[[str], Floats]
"""A tensor as float32, by its name in a Llama."""


class MixingError(ValueError):
    """No mixture can be made of this; the message names the field, its value, what was expected."""


@dataclass(frozen=True)
class Ingredient:
    """A Llama whose FFNs become an expert called `name`, for text of `domain`.

    `shape` has its own FFN width. `forms` are the tensors that its files hold, as Hugging Face
    names them, and `read` gives each of them as float32. `vocabulary` is a digest of its tokenizer,
    None where nobody knows it. `origin` says in words where it comes from, `files` are the digests
    of its files. An adapter was merged into its base while it was read.
    """

    name: str
    domain: str
    shape: ModelShape
    forms: Mapping[str, TensorForm]
    read: Reader
    vocabulary: str | None
    origin: str
    files: Mapping[str, str]
    is_adapter: bool = False


def check_fit(ingredients: Sequence[Ingredient], seed: Ingredient) -> None:
    """Raises MixingError unless these experts can be mixed on this seed.

    They must have distinct names that are DomainIds, the seed's tokenizer, and the seed's shape,
    the FFN width apart. The message names the first tensor that differs. Reads no tensor.
    """
    if not ingredients:
        raise MixingError("experts: none, expected at least one")
    check_names([one.name for one in ingredients])
    check_names([one.domain for one in ingredients], distinct=False)
    for one in (seed, *ingredients):
        _check_tensors(one, seed.shape)
    for one in ingredients:
        _check_same_model(one, seed)


def check_names(names: Sequence[str], *, distinct: bool = True) -> None:
    """Raises MixingError for a name that is no DomainId, and for one that stands twice."""
    for name in names:
        try:
            TypeAdapter(DomainId).validate_python(name)
        except ValidationError as error:
            raise MixingError(
                f"experts: the name {name!r:.80}, expected lower-case letters, digits, '_', '.' "
                f"and '-', a letter or digit first, at most 63"
            ) from error
    for name, count in Counter(names).items():
        if distinct and count > 1:
            raise MixingError(f"experts: {count} are called {name!r}, expected distinct names")


def survey(ingredient: Ingredient) -> dict[str, str]:
    """A digest of each part's weights, by the part: those of OWNABLE, and `ffn`.

    Every tensor is read once. Raises MixingError naming the first that holds NaN or an infinity.
    With tied embeddings the head's digest is that of the embeddings as a head.
    """
    sums: dict[str, hashlib._Hash] = {}
    for name in model_tensors(ingredient.shape):
        tensor = read_finite(ingredient, name)
        for used_as in _uses(name, ingredient.shape):
            part = sums.setdefault(part_of(used_as), hashlib.sha256())
            part.update(f"{used_as} {tensor.shape}\n".encode())
            part.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return {part: sums[part].hexdigest() for part in sorted(sums)}


def read_finite(ingredient: Ingredient, name: str) -> Floats:
    """One tensor. Raises MixingError where it holds NaN or an infinity, or has another shape."""
    tensor = ingredient.read(name)
    expected = model_tensors(ingredient.shape)[name][1]
    if tensor.shape != expected:
        raise MixingError(
            f"{ingredient.name}: tensor {name} is {list(tensor.shape)}, expected {list(expected)}"
        )
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        if not np.isfinite(flat[start : start + _CHUNK]).all():
            raise MixingError(f"{ingredient.name}: tensor {name} has NaN or infinite values")
    return tensor


def untied(read: Reader, has: Iterable[str]) -> Reader:
    """A reader that gives the embeddings where the head is asked for and they are tied."""
    names = frozenset(has)

    def read_either(name: str) -> Floats:
        return read(_EMBEDDINGS if name == _HEAD and _HEAD not in names else name)

    return read_either


def _uses(name: str, shape: ModelShape) -> tuple[str, ...]:
    return (name, _HEAD) if name == _EMBEDDINGS and shape.tied_embeddings else (name,)


def _check_tensors(one: Ingredient, seed: ModelShape) -> None:
    """That the files hold a Llama of the seed's shape with FFNs of the ingredient's own width."""
    expected = model_tensors(seed.model_copy(update={"ffn_width": one.shape.ffn_width}))
    for name, (_, shape) in expected.items():
        if name not in one.forms:
            raise MixingError(f"{one.name}: tensor {name} is missing, expected {list(shape)}")
        if one.forms[name][1] != shape:
            found = list(one.forms[name][1])
            raise MixingError(f"{one.name}: tensor {name} is {found}, expected {list(shape)}")
    for name in model_tensors(one.shape):
        if name not in expected:
            raise MixingError(f"{one.name}: tensor {name}: the seed has none")


def _check_same_model(one: Ingredient, seed: Ingredient) -> None:
    for field, tensor in _COMPUTED_OTHERWISE.items():
        found, expected = getattr(one.shape, field), getattr(seed.shape, field)
        if found != expected:
            raise MixingError(
                f"{one.name}: {field} {found}, the seed has {expected}: tensor {tensor} means "
                f"something else"
            )
    if one.shape.context_length < seed.shape.context_length:
        raise MixingError(
            f"{one.name}: context_length {one.shape.context_length}, expected at least that of the "
            f"seed, {seed.shape.context_length}"
        )
    if None not in (one.vocabulary, seed.vocabulary) and one.vocabulary != seed.vocabulary:
        raise MixingError(
            f"{one.name}: its tokenizer has digest {str(one.vocabulary)[:12]}, that of the seed "
            f"{str(seed.vocabulary)[:12]}: the rows of {_EMBEDDINGS} are other tokens'"
        )
