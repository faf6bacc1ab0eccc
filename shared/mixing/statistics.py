"""What a mixture's routers know of one expert's domain: sums over its text that add up exactly.

Token counts serve the prefix router, products of hidden states the routers in the layers. Hidden
states are rounded to multiples of 2**-12, so that their sums of products are multiples of 2**-24:
as long as those stay below 2**29 they are exact in fp64. Sums then depend neither on the order of
adding nor on how text was cut into batches, and what was added can be taken away without a trace.
NumPy, no torch.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from shared.files import sync_folder
from shared.mixing.evidence import StatisticsError, TokenCounts
from shared.tensorfiles import TensorEntry, TensorForm, read_header

GRID = 2.0**-12
"""Hidden states are rounded to multiples of it."""

_LARGEST = 2.0**53 * GRID**2
_FLOAT64 = np.dtype("<f8")
_INT64 = np.dtype("<i8")
_COUNTS, _PAIRS, _WINDOWS = "token_windows", "pair_windows", "windows"
_HIDDEN = "hidden_products"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ExpertStatistics:
    """Additive statistics of one domain's text.

    `tokens` are its token counts. `hidden`, where there are any, is fp64 [layers + 1, hidden + 1,
    hidden + 1]: the sum over positions of x x', x being a hidden state and a 1 behind it. First
    that of the embedded tokens, then that of the input of each layer's FFN. The last column of
    each is the sum of the hidden states, and its last element the number of positions.

    Raises StatisticsError for NaN, for what is no exact sum, is not symmetric, or has a negative
    number of positions or a negative square.
    """

    tokens: TokenCounts
    hidden: Floats | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None:
            _check_hidden(self.hidden)

    @property
    def num_positions(self) -> int:
        """Positions whose hidden states are summed; 0 without hidden states."""
        return 0 if self.hidden is None else int(self.hidden[0, -1, -1])

    def __add__(self, other: Self) -> Self:
        """The statistics of both texts. Raises StatisticsError when they do not fit."""
        self._check_fits(other)
        hidden = None
        if self.hidden is not None and other.hidden is not None:
            hidden = self.hidden + other.hidden
        return type(self)(self.tokens + other.tokens, hidden)

    def __sub__(self, other: Self) -> Self:
        """Those left without a text that was added: the bytes from before, if it was.

        Raises StatisticsError when it cannot have been added, or does not fit.
        """
        self._check_fits(other)
        hidden = None
        if self.hidden is not None and other.hidden is not None:
            hidden = self.hidden - other.hidden
        return type(self)(self.tokens - other.tokens, hidden)

    def write(self, path: Path) -> None:
        """Writes the statistics to `path`, whole or not at all."""
        tensors: dict[str, npt.NDArray[Any]] = {
            _COUNTS: self.tokens.counts,
            _WINDOWS: np.asarray([self.tokens.windows], dtype=np.int64),
        }
        if self.tokens.num_pairs:
            tensors[_PAIRS] = self.tokens.pairs
        if self.hidden is not None:
            # Adding 0 makes every -0 a 0: equal statistics are equal bytes.
            tensors[_HIDDEN] = np.ascontiguousarray(self.hidden + 0.0)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            save_file(tensors, draft)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)

    @classmethod
    def read(
        cls, path: Path, *, vocab_size: int, hidden_size: int | None = None, num_layers: int = 0
    ) -> Self:
        """Reads a file of `write` for a model of this vocabulary, hidden size and many layers.

        Hidden states are read where the file has them, and a `hidden_size` is given. The header is
        compared with the sizes before anything is allocated. Raises TensorFileError for the file's
        form and StatisticsError, which names the file, for what it holds.
        """
        entries = read_header(path, also={"F64": _FLOAT64})
        _check_names(path, entries)
        expected: dict[str, TensorForm] = {_COUNTS: ("I64", (vocab_size,)), _WINDOWS: ("I64", (1,))}
        if _PAIRS in entries:
            expected[_PAIRS] = ("I64", entries[_PAIRS].shape)
        if hidden_size is not None and _HIDDEN in entries:
            side = hidden_size + 1
            expected[_HIDDEN] = ("F64", (num_layers + 1, side, side))
        for name, form in expected.items():
            if entries[name].form != form:
                raise StatisticsError(
                    f"{path.name}: tensor {name} is {entries[name].form}, expected {form}"
                )
        tensors = {name: _tensor(path, entries[name]) for name in expected}
        try:
            pairs = tensors.get(_PAIRS, np.zeros(0, dtype=np.int64))
            tokens = TokenCounts(int(tensors[_WINDOWS][0]), tensors[_COUNTS], pairs)
            return cls(tokens, tensors.get(_HIDDEN))
        except StatisticsError as error:
            raise StatisticsError(f"{path.name}: {error}") from error

    def _check_fits(self, other: Self) -> None:
        forms = [None if one.hidden is None else one.hidden.shape for one in (self, other)]
        if forms[0] != forms[1]:
            raise StatisticsError(f"hidden: {forms[0]} and {forms[1]}, expected alike")


def _check_names(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    needed = {_COUNTS, _WINDOWS}
    for name in sorted((entries.keys() ^ needed) - {_PAIRS, _HIDDEN}):
        problem = "missing" if name in needed else "not expected"
        raise StatisticsError(f"{path.name}: tensor {name[:80]!r} is {problem}")


def _tensor(path: Path, entry: TensorEntry) -> npt.NDArray[Any]:
    dtype = _FLOAT64 if entry.dtype == "F64" else _INT64
    with path.open("rb") as file:
        file.seek(entry.begin)
        count = (entry.end - entry.begin) // dtype.itemsize
        return np.fromfile(file, dtype=dtype, count=count).reshape(entry.shape)


def _check_hidden(hidden: Floats) -> None:
    if hidden.dtype != _FLOAT64 or hidden.ndim != 3 or hidden.shape[1] != hidden.shape[2]:
        raise StatisticsError(
            f"hidden: {hidden.dtype} {hidden.shape}, expected float64 [layers + 1, hidden + 1, "
            f"hidden + 1]"
        )
    for index, products in enumerate(hidden):
        _check_products(products, index)
    positions = hidden[:, -1, -1]
    if (positions != positions[0]).any() or positions[0] != np.floor(positions[0]):
        raise StatisticsError(f"hidden: positions {positions[:4]}, expected one whole number")


def _check_products(products: Floats, index: int) -> None:
    if not np.isfinite(products).all():
        raise StatisticsError(f"hidden: NaN or infinite in the products of layer {index - 1}")
    if np.abs(products).max() > _LARGEST:
        raise StatisticsError(
            f"hidden: a sum of {np.abs(products).max():.3g} in layer {index - 1}, expected at most "
            f"{_LARGEST:.3g}, up to which sums are exact: use fewer positions"
        )
    units = products / GRID**2
    if (units != np.rint(units)).any():
        raise StatisticsError(
            f"hidden: a sum in layer {index - 1} is no multiple of {GRID**2:.3g}, as those of "
            f"rounded hidden states are"
        )
    if (products != products.T).any() or (np.diagonal(products) < 0).any():
        raise StatisticsError(
            f"hidden: the products of layer {index - 1} are no sum of squares: more was taken away "
            f"than had been added"
        )
