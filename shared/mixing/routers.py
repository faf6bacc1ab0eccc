"""Routers of a mixture that no one trains: rows from chance, from mean hidden states, from ridge.

Each gives one row an expert for the embedded tokens and for the input of each layer's FFN: float64
[layers + 1, experts, hidden], in the order of the experts' names; index 0 is what the `global`
router sees, index l + 1 what the router of layer l sees. An expert's gate is the softmax of its row
times the hidden state. Pure, NumPy. The prefix router's table is `evidence.log_likelihood_table`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.mixing.evidence import StatisticsError
from shared.mixing.statistics import ExpertStatistics
from shared.shards import raw_draws

RIDGE_STRENGTH = 1e-2
"""Of the ridge, as DUME (Fani and Ersoy 2026, arXiv 2603.29765) has it in its code."""

MAX_CONDITION = 5.0
"""Above this condition number rows are too much alike to route by (mergekit's limit)."""

_NOISE = 11
"""Purpose of the draws for noisy rows."""
_SMALLEST_NORM = 1e-12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RidgeRows:
    """`rows` float64 [layers + 1, experts, hidden] and `biases` [layers + 1, experts]."""

    rows: Floats
    biases: Floats


def noisy_rows(
    names: Sequence[str], *, rng_seed: int, num_layers: int, hidden_size: int, std: float
) -> Floats:
    """Rows drawn from a normal distribution (Lee, Wynter and Ganti 2024, arXiv 2408.17280).

    An expert's rows depend on its name and `rng_seed` alone, whoever else is in the mixture.
    """
    _check_names(names)
    draws = [_normal(name, rng_seed, (num_layers + 1) * hidden_size) for name in names]
    return std * np.stack(draws).reshape(len(names), num_layers + 1, hidden_size).swapaxes(0, 1)


def hidden_rows(statistics: Mapping[str, ExpertStatistics]) -> Floats:
    """The mean hidden state of each expert's domain, L2-normalised (mergekit-moe's `hidden`).

    Raises StatisticsError, naming the expert, for one without hidden states.
    """
    products = _products(statistics)
    return _normalised([one[:, :-1, -1] / one[:, -1:, -1] for one in products], statistics)


def prompt_rows(
    positive: Mapping[str, Floats], negative: Mapping[str, Floats] | None = None
) -> Floats:
    """The hidden states of prompts, less those of negative prompts, L2-normalised (mergekit-moe).

    Each expert's are float64 [layers + 1, hidden], already averaged over its prompts; without
    negative prompts nothing is subtracted. Raises StatisticsError, naming the expert, for NaN, for
    unequal shapes, negative prompts of no expert, and for a difference that is 0.
    """
    _check_names(list(positive))
    negative = negative or {}
    strangers = sorted(negative.keys() - positive.keys())
    if strangers:
        raise StatisticsError(f"negative: {strangers[0]!r}, expected an expert with positive ones")
    shapes = {one.shape for one in (*positive.values(), *negative.values())}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise StatisticsError(
            f"prompts: hidden states {sorted(shapes)}, expected [layers + 1, hidden]"
        )
    differences = [one - negative.get(name, 0.0) for name, one in positive.items()]
    return _normalised(differences, positive)


def ridge_rows(
    statistics: Mapping[str, ExpertStatistics], *, strength: float = RIDGE_STRENGTH, bias: bool
) -> RidgeRows:
    """The router in closed form: which expert's domain a hidden state is of, by ridge regression.

    W = (sum of X'X + strength I)^-1 X'Y, where X holds the hidden states of all domains, with a
    column of ones if there is a `bias`, and Y says by a 1 whose each is. An expert's column of X'Y
    is the sum of its own hidden states, so that all of it follows from sums that add up over
    experts. Each row of weights is L2-normalised, and its bias divided by the same norm (DUME: Fani
    and Ersoy 2026, arXiv 2603.29765). Raises ValueError for a strength that is not above 0 and
    StatisticsError, naming the expert, for one without hidden states.
    """
    if not 0 < strength < np.inf:
        raise ValueError(f"strength {strength}: expected above 0")
    products = _products(statistics)
    total = np.sum(products, axis=0)
    targets = np.stack([one[:, :, -1] for one in products], axis=2)
    size = total.shape[1] if bias else total.shape[1] - 1
    ridge = total[:, :size, :size] + strength * np.eye(size)
    weights = np.linalg.solve(ridge, targets[:, :size]).swapaxes(1, 2)
    hidden = total.shape[1] - 1
    norms = np.linalg.norm(weights[:, :, :hidden], axis=2)
    _check_norms(norms.T, statistics)
    biases = weights[:, :, hidden] / norms if bias else np.zeros_like(norms)
    return RidgeRows(weights[:, :, :hidden] / norms[:, :, None], biases)


def condition_number(rows: Floats) -> float:
    """The largest singular value of one layer's rows [experts, hidden] over the smallest."""
    return float(np.linalg.cond(rows))


def degeneracy(rows: Floats, names: Sequence[str]) -> str | None:
    """What is wrong with routers whose rows are nearly the same, in words; None if nothing is.

    `rows` are [layers, experts, hidden]; told of is the layer with the largest condition number,
    if that is above MAX_CONDITION, and the two experts in it whose rows are most alike.
    """
    if len(names) < 2:
        return None
    conditions = [condition_number(one) for one in rows]
    worst = int(np.argmax(conditions))
    if conditions[worst] <= MAX_CONDITION:
        return None
    alike = rows[worst] / np.maximum(
        np.linalg.norm(rows[worst], axis=1, keepdims=True), _SMALLEST_NORM
    )
    cosines = alike @ alike.T - 2 * np.eye(len(names))
    one, other = divmod(int(np.argmax(cosines)), len(names))
    above = sum(condition > MAX_CONDITION for condition in conditions)
    return (
        f"the rows of {above} of {len(rows)} routers are too much alike to route by: condition "
        f"number {conditions[worst]:.3g} in router {worst}, expected at most {MAX_CONDITION:g}; "
        f"most alike are {names[one]} and {names[other]} (cosine {cosines[one, other]:.3f})"
    )


def _products(statistics: Mapping[str, ExpertStatistics]) -> list[Floats]:
    """Each expert's products of hidden states, of one shape, each of some positions."""
    _check_names(list(statistics))
    products = []
    for name, one in statistics.items():
        if one.hidden is None or one.num_positions == 0:
            raise StatisticsError(f"hidden: none for {name!r}, expected hidden states of its text")
        products.append(one.hidden)
        if one.hidden.shape != products[0].shape:
            raise StatisticsError(
                f"hidden: {one.hidden.shape} for {name!r}, expected {products[0].shape}"
            )
    return products


def _normalised(rows: Sequence[Floats], names: Mapping[str, object]) -> Floats:
    norms = np.stack([np.linalg.norm(one, axis=1) for one in rows])
    _check_norms(norms, names)
    return np.stack([one / norm[:, None] for one, norm in zip(rows, norms, strict=True)], axis=1)


def _check_norms(norms: Floats, names: Mapping[str, object]) -> None:
    """Of norms [experts, layers + 1]: all must be finite and above 0."""
    for name, norm in zip(names, norms, strict=True):
        if not (norm > _SMALLEST_NORM).all() or not np.isfinite(norm).all():
            raise StatisticsError(
                f"rows: norm {norm.min():.3g} for {name!r}, expected finite and above 0"
            )


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("experts: none, expected at least one")
    if len(set(names)) != len(names):
        raise ValueError(f"experts: {sorted(names)}, expected different names")


def _normal(name: str, rng_seed: int, count: int) -> Floats:
    """`count` draws from the normal distribution, which depend on the name and seed alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    draws = raw_draws(rng_seed, _NOISE, key, 2 * count) >> np.uint64(11)
    first, second = (draws.astype(np.float64) + 0.5).reshape(2, count) * 2.0**-53
    return np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
