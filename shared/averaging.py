"""The weighted mean of checkpoints' weights, file to file: NumPy, no torch.

Each tensor is summed in fp64 in the order of the sources and written as fp32 before the next one is
read, so that memory is bounded by the largest tensor, whatever the number of sources, and the same
sources in the same order give the same bytes.

FFNs may be of unequal width, of which the narrower ones are the first units of the wider ones: what
a nested seed is trained for. The mean is as wide as the widest; each FFN unit is the mean over the
sources that have it, their shares divided by their sum. Averages of checkpoints that were not
trained from a common one mean nothing, which no file can tell.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.tensorfiles import (
    TensorEntry,
    TensorFileError,
    read_header,
    read_tensors,
    stream_tensors,
)

Floats = npt.NDArray[np.float64]

_FFN_AXES = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}
"""The dimension of a tensor that FFN units lie along, by the end of its name."""


@dataclass(frozen=True)
class Source:
    """A checkpoint's file of weights, and its share of the mean: above 0, in any unit."""

    path: Path
    share: float


def average_files(sources: Sequence[Source], target: Path) -> None:
    """Write the mean of the sources' weights to `target`, whole or not at all.

    Raises ValueError for no source and for a share that is not above 0, TensorFileError when a file
    is damaged and, naming the first tensor, when the sources' tensors do not fit each other.
    """
    if not sources:
        raise ValueError("sources: got none, expected at least one checkpoint")
    for source in sources:
        if not (0 < source.share < math.inf):
            raise ValueError(f"share {source.share} of {source.path.name}: expected above 0")
    shapes = _common_shapes(sources)
    stream_tensors(
        target,
        {name: ("F32", shape) for name, shape in shapes.items()},
        lambda name: _mean(name, sources, shapes[name]),
    )


def _common_shapes(sources: Sequence[Source]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the mean, in the order of the first source's names."""
    headers = [read_header(source.path) for source in sources]
    for source, header in zip(sources, headers, strict=True):
        if header.keys() != headers[0].keys():
            name = sorted(header.keys() ^ headers[0].keys())[0]
            raise TensorFileError(
                f"{name}: in one of {sources[0].path.name} and {source.path.name}, expected both"
            )
    return {
        name: _common_shape(name, [header[name] for header in headers])
        for name in sorted(headers[0])
    }


def _common_shape(name: str, entries: Sequence[TensorEntry]) -> tuple[int, ...]:
    first, axis = entries[0], _ffn_axis(name)
    for entry in entries:
        if entry.dtype != "F32":
            raise TensorFileError(f"{name}: dtype {entry.dtype}, expected F32")
        if _without(entry.shape, axis) != _without(first.shape, axis):
            raise TensorFileError(f"{name}: shapes {first.shape} and {entry.shape}, expected alike")
    extents = list(first.shape)
    if axis is not None:
        extents[axis] = max(entry.shape[axis] for entry in entries)
    return tuple(extents)


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """A shape with what may differ left out; its dimensions must be as many."""
    return tuple(-1 if index == axis else extent for index, extent in enumerate(shape))


def _ffn_axis(name: str) -> int | None:
    return next((axis for ending, axis in _FFN_AXES.items() if name.endswith(ending)), None)


def _mean(name: str, sources: Sequence[Source], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """One tensor of the mean, float32 of `shape`."""
    total = np.zeros(shape, dtype=np.float64)
    axis = _ffn_axis(name)
    shares = np.zeros(shape[axis] if axis is not None else 1, dtype=np.float64)
    for source, tensor in _tensors(name, sources):
        part = total[tuple(slice(0, extent) for extent in tensor.shape)]
        part += source.share * tensor.astype(np.float64)
        shares[: tensor.shape[axis] if axis is not None else 1] += source.share
    total /= shares[:, None] if axis == 0 else shares
    return total.astype("<f4")


def _tensors(
    name: str, sources: Sequence[Source]
) -> Iterator[tuple[Source, npt.NDArray[np.float32]]]:
    """The tensor in each source, mapped, one after the other."""
    for source in sources:
        yield source, read_tensors(source.path)[name]
