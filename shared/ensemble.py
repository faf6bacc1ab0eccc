"""From label log-likelihoods to ensembles: NumPy in fp64, no torch.

`l` is [experts, labels] in nats: log p_i(x_t | x_<t). `starts` are the first labels of the windows;
nothing is carried from one window to the next. Every ensemble is a mixture of the experts'
distributions, with weights that depend on earlier labels only, so that it is a distribution itself.

The probability average gives all experts the same weight. The posterior ensemble is the domain
posterior of Branch-Train-Merge (arXiv 2208.03306) that HDEE reports (arXiv 2502.19385): experts are
weighted by prior times the likelihood of the window so far,

    log p_t = logsumexp_i(L_i + l_it) - logsumexp_i(L_i),   L_i = log pi_i + sum of l_is over s < t.

A window's sum telescopes to logsumexp_i(log pi_i + sum_t l_it), so the ensemble is never worse than
its best expert by more than -log pi_i a window.

The *top k* of a posterior ensemble are, at each label anew, the k experts with the largest weight;
their weights are divided by their sum, the others count for nothing. Experts whose weight equals
the k-th largest all count, so that the order of experts changes nothing: at a window's first label,
a uniform prior tells none apart and all count. Where weights change with the text, windows do not
telescope. An average has equal weights, so its top k are those with the largest `cached_prior`.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RESAMPLE_CELLS = 1 << 22
_ROUNDING = 1e-9
"""Logarithms of weights that differ by less are equal."""


def probability_average(l: npt.ArrayLike) -> Floats:  # noqa: E741
    """Log of the experts' mean probability for each label, [labels]."""
    rows = _rows(l)
    return np.asarray(_logsumexp(rows) - np.log(len(rows)))


def posterior(
    l: npt.ArrayLike,  # noqa: E741
    starts: npt.ArrayLike,
    log_prior: npt.ArrayLike | None = None,
    *,
    top_k: int | None = None,
) -> Floats:
    """Each expert's weight before it sees a label, [experts, labels]; columns sum to 1."""
    rows = _rows(l)
    evidence = _heaviest(_evidence(rows, starts, log_prior), top_k)
    return np.asarray(np.exp(evidence - _logsumexp(evidence)))


def posterior_ensemble(
    l: npt.ArrayLike,  # noqa: E741
    starts: npt.ArrayLike,
    log_prior: npt.ArrayLike | None = None,
    *,
    top_k: int | None = None,
) -> Floats:
    """Log-likelihood of each label under the posterior ensemble, [labels]; the prior is uniform
    unless given."""
    rows = _rows(l)
    return mixture(rows, _evidence(rows, starts, log_prior), top_k=top_k)


def running_sums(l: npt.ArrayLike, starts: npt.ArrayLike) -> Floats:  # noqa: E741
    """Sum of each expert's log-likelihoods over the window's labels before this one.

    Plus a log prior, these are the log weights of the posterior ensemble at each label, up to a
    constant: what several ensembles of the same experts have in common. [experts, labels].
    """
    rows = _rows(l)
    sums = np.zeros_like(rows)
    for begin, end in _bounds(starts, rows.shape[1]):
        np.cumsum(rows[:, begin : end - 1], axis=1, out=sums[:, begin + 1 : end])
    return sums


def mixture(l: Floats, log_weights: Floats, *, top_k: int | None = None) -> Floats:  # noqa: E741
    """Log of the experts' mean probability under the weights of each label, [labels].

    `l` and `log_weights` are fp64 [experts, labels]; weights need not sum to 1.
    """
    kept = _heaviest(log_weights, top_k)
    return np.asarray(_logsumexp(kept + l) - _logsumexp(kept))


def heaviest(log_weights: npt.ArrayLike, top_k: int) -> list[int]:
    """The experts with the `top_k` largest of `log_weights` [experts], and those that tie there."""
    kept = _heaviest(np.asarray(log_weights, dtype=np.float64)[:, None], top_k)
    return [int(expert) for expert in np.flatnonzero(np.isfinite(kept[:, 0]))]


def cached_prior(
    l_dev: npt.ArrayLike, starts: npt.ArrayLike, *, decay: float = 0.3, max_windows: int = 100
) -> Floats:
    """Log prior over experts, estimated on a dev shard and then frozen, [experts].

    Branch-Train-Merge's moving average: pi_1 = post_1, pi_n = (1 - decay) pi_(n-1) + decay post_n,
    where post_n is the mean over the labels of window n of the posterior with a uniform prior. At
    most the first `max_windows` windows count.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay {decay}: expected in (0, 1]")
    if max_windows < 1:
        raise ValueError(f"max_windows {max_windows}: expected at least 1")
    rows = _rows(l_dev)
    bounds = _bounds(starts, rows.shape[1])[:max_windows]
    firsts = [begin for begin, _ in bounds]
    weights = posterior(rows[:, : bounds[-1][1] if bounds else 0], firsts)
    prior: Floats | None = None
    for begin, end in bounds:
        mean = weights[:, begin:end].mean(axis=1)
        prior = mean if prior is None else (1 - decay) * prior + decay * mean
    if prior is None:
        raise ValueError("l_dev: no labels to estimate a prior on")
    return np.asarray(np.log(prior / prior.sum()))


def perplexity(lls: npt.ArrayLike) -> float:
    """exp of the mean negative log-likelihood of a label."""
    return float(np.exp(-_labels(lls, "lls").mean()))


def bits_per_byte(lls: npt.ArrayLike, num_bytes: int) -> float:
    """Bits needed for one byte of the text, comparable across tokenizers."""
    if num_bytes < 1:
        raise ValueError(f"num_bytes {num_bytes}: expected at least 1")
    return float(-_labels(lls, "lls").sum() / np.log(2) / num_bytes)


def paired_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    documents: npt.ArrayLike,
    *,
    confidence: float,
    rng_seed: int,
    num_resamples: int,
) -> tuple[float, float, float]:
    """(low, mean, high) of mean(a - b) a label: percentile bootstrap over documents.

    Labels of one document go together, because they are not independent; `documents` [labels]
    names each label's. The noise of training is not in the interval. Raises ValueError below two
    documents.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected between 0 and 1")
    if num_resamples < 1:
        raise ValueError(f"num_resamples {num_resamples}: expected at least 1")
    left, right, owners = _labels(a, "a"), _labels(b, "b"), np.asarray(documents)
    if not left.shape == right.shape == owners.shape:
        raise ValueError(f"a, b, documents: shapes {left.shape}, {right.shape}, {owners.shape}")
    _, index = np.unique(owners, return_inverse=True)
    sums = np.bincount(index, weights=left - right).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    if len(sums) < 2:
        raise ValueError(f"documents: {len(sums)}, expected at least 2 to resample")
    means = resampled_means(sums[:, None], counts, rng_seed=rng_seed, num_resamples=num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means[:, 0], [tail, 1 - tail])
    return float(low), float(sums.sum() / counts.sum()), float(high)


def resampled_means(
    sums: Floats, counts: Floats, *, rng_seed: int | Sequence[int], num_resamples: int
) -> Floats:
    """Means a label over documents drawn with replacement, as many as there are.

    `sums` [documents, columns] are each document's sums over its labels, `counts` [documents] its
    labels. The columns of a resample come from the same documents, so that the difference of two
    is a paired one. [num_resamples, columns].
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(rng_seed)))
    num_documents = len(sums)
    block = max(1, _RESAMPLE_CELLS // num_documents)
    means: list[Floats] = []
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_documents, size=(size, num_documents))
        drawn += np.arange(size)[:, None] * num_documents
        times = np.bincount(drawn.ravel(), minlength=size * num_documents).astype(np.float64)
        times = times.reshape(size, num_documents)
        means.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(means)


def _rows(l: npt.ArrayLike) -> Floats:  # noqa: E741
    rows = np.asarray(l, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise ValueError(f"l: shape {rows.shape}, expected [experts, labels]")
    if not np.isfinite(rows).all():
        expert, label = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(f"l: {rows[expert, label]} for expert {expert}, label {label}")
    return rows


def _labels(values: npt.ArrayLike, name: str) -> Floats:
    labels = np.asarray(values, dtype=np.float64)
    if labels.ndim != 1 or labels.size == 0 or not np.isfinite(labels).all():
        raise ValueError(f"{name}: shape {labels.shape}, expected finite values, one a label")
    return labels


def _bounds(starts: npt.ArrayLike, num_labels: int) -> list[tuple[int, int]]:
    firsts = np.asarray(starts, dtype=np.int64)
    edges = np.append(firsts, num_labels)
    if (edges[0] != 0) or (np.diff(edges) <= 0).any():
        if num_labels == 0 and len(firsts) == 0:
            return []
        raise ValueError(f"starts: expected strictly rising from 0, below {num_labels} labels")
    return [(int(begin), int(end)) for begin, end in pairwise(edges)]


def _evidence(rows: Floats, starts: npt.ArrayLike, log_prior: npt.ArrayLike | None) -> Floats:
    """L_i before each label: log prior plus the window's labels so far, [experts, labels]."""
    num_experts = len(rows)
    prior = np.full(num_experts, -np.log(num_experts)) if log_prior is None else log_prior
    prior = np.asarray(prior, dtype=np.float64)
    if prior.shape != (num_experts,) or abs(_logsumexp(prior[:, None])[0]) > 1e-6:
        raise ValueError(f"log_prior: {prior}, expected {num_experts} logs of weights summing to 1")
    evidence = running_sums(rows, starts)
    evidence += prior[:, None]
    return evidence


def _heaviest(log_weights: Floats, top_k: int | None) -> Floats:
    """The weights with -inf for all but the `top_k` largest of each column."""
    if top_k is None or top_k >= len(log_weights):
        return log_weights
    if top_k < 1:
        raise ValueError(f"top_k {top_k}: expected at least 1")
    left = log_weights
    if top_k > 1:
        left = log_weights.copy()
        for _ in range(top_k - 1):
            np.put_along_axis(left, left.argmax(axis=0)[None], -np.inf, axis=0)
    return np.where(log_weights >= left.max(axis=0) - _ROUNDING, log_weights, -np.inf)


def _logsumexp(rows: Floats) -> Floats:
    """Log of the sum of exponentials over the first axis; some of each column are finite."""
    if rows.shape[1] == 0:
        return np.zeros(0)
    largest = rows.max(axis=0)
    return np.asarray(np.log(np.exp(rows - largest).sum(axis=0)) + largest)
