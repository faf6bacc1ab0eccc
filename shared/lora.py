"""Low-rank adapters: their names and forms, and what they add to weights. NumPy, no torch.

Tensors are named as PEFT names them, so that an adapter's file is PEFT's `adapter_model`.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from protocol.specs import Lora, ModelShape
from shared.tensorfiles import TensorForm, model_tensors

PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's own modules."""

COARSEST = 2.0**-8
"""Of the largest weight: a sum that rounding blurs more than that is told from nothing."""

_UNDERFLOW = 2.0**-126
"""Below its smallest normal number fp32 rounds by more than its share."""

_ROWS = 1024
"""Of a matrix, so many are added to at a time: fp64 copies of large ones would double memory."""

Floats = npt.NDArray[np.float32]


def adapted_modules(shape: ModelShape, lora: Lora) -> Iterator[tuple[str, int, int]]:
    """Each adapted module's name, its outputs and its inputs, in the order of `model_tensors`."""
    for name, (_, form) in model_tensors(shape).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in lora.projections:
            outputs, inputs = form
            yield module, outputs, inputs


def adapter_tensors(shape: ModelShape, lora: Lora) -> dict[str, TensorForm]:
    """Name and form of A [rank, inputs] and B [outputs, rank] of every adapted module, in order."""
    forms: dict[str, TensorForm] = {}
    for module, outputs, inputs in adapted_modules(shape, lora):
        names = adapter_names(module)
        forms[names[0]] = "F32", (lora.rank, inputs)
        forms[names[1]] = "F32", (outputs, lora.rank)
    return forms


def adapter_names(module: str) -> tuple[str, str]:
    """The names of a module's A and B."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def merged(weight: Floats, a: Floats, b: Floats, *, scale: float) -> Floats:
    """`weight` + scale * B A, computed in fp64 and rounded once to fp32."""
    result = np.empty_like(weight, dtype=np.float32)
    for rows, exact, _ in _exactly(weight, a, b, scale=scale):
        result[rows] = exact
    return result


def is_merged(candidate: Floats, weight: Floats, a: Floats, b: Floats, *, scale: float) -> bool:
    """Whether `candidate` is `weight` + scale * B A, as far as fp32 arithmetic can tell.

    An fp32 sum of rank + 1 terms is off by at most that many roundings of the terms' magnitudes.
    False for huge terms that cancel each other, whose roundings would pass any candidate.
    """
    unit, largest = (len(a) + 2) * 2.0**-23, float(np.abs(weight).max())
    for rows, exact, magnitude in _exactly(weight, a, b, scale=scale):
        coarsest = COARSEST * (largest + np.abs(exact))
        allowed = _UNDERFLOW + np.minimum(unit * magnitude, coarsest)
        if not (np.abs(candidate[rows] - exact) <= allowed).all():
            return False
    return True


def _exactly(
    weight: Floats, a: Floats, b: Floats, *, scale: float
) -> Iterator[tuple[slice, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Some rows at a time: the sum, and the sum of its terms' magnitudes."""
    scaled = scale * a.astype(np.float64)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        left, own = b[rows].astype(np.float64), weight[rows].astype(np.float64)
        yield rows, own + left @ scaled, np.abs(own) + np.abs(left) @ np.abs(scaled)
