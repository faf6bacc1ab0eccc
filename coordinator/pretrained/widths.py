"""One file of weights for several FFN widths: units by activity, then new ones. Pure.

The FFN's units may stand in any order: the function stays. By falling activity, the first units of
every FFN are the model pruned to that width. Units beyond the model's own width come last, as near
copies of the most active ones in gate and up, and with zero columns in down: the wide model, too,
computes what the original does, and each width is a prefix of the next, as of a nested seed. Zero
columns learn from the first step on, and the noise in the copies tells them from their models.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shared.shards import raw_draws

Floats = npt.NDArray[np.float32]

NOISE = 0.1
"""Of a row's root mean square, the standard deviation of the noise that a copy of it gets."""

_COPIES = 3
"""Purpose of the draws of noise; 1 orders windows, 2 draws nested widths."""


def unit_order(activity: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Units by falling activity, layer by layer, int64 [layers, units]. Equal ones keep order."""
    return np.argsort(-activity, axis=1, kind="stable").astype(np.int64)


def rearranged(
    read: Callable[[str], Floats],
    order: npt.NDArray[np.int64],
    *,
    ffn_width: int,
    rng_seed: int,
) -> Callable[[str], Floats]:
    """A reader of the model's tensors with FFNs of `ffn_width` units in `order` [layers, units].

    `read` gives the original's tensors by name. A width below the model's own leaves units out.
    """

    def make(name: str) -> Floats:
        full = read(name)
        if ".mlp." not in name:
            return full
        layer = int(name.split(".")[2])
        units = order[layer][:ffn_width]
        missing = ffn_width - len(units)
        if name.endswith(".down_proj.weight"):
            return np.asarray(np.pad(full[:, units], ((0, 0), (0, missing))), dtype=np.float32)
        rows = full[units]
        copies = rows[np.arange(missing) % len(rows)]
        index = 2 * layer + name.endswith(".up_proj.weight")
        return np.vstack([rows, copies + _noise(copies, rng_seed, index)])

    return make


def _noise(rows: Floats, rng_seed: int, index: int) -> Floats:
    """Uniform noise of NOISE times each row's root mean square."""
    draws = raw_draws(rng_seed, _COPIES, index, rows.size).reshape(rows.shape)
    uniform = draws.astype(np.float64) / 2.0**64 - 0.5
    scale = np.sqrt(12 * np.square(rows, dtype=np.float64).mean(axis=1, keepdims=True))
    return np.asarray(NOISE * scale * uniform, dtype=np.float32)
