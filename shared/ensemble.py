"""From label log-likelihoods to ensembles: NumPy in fp64, no torch.

`l` is [experts, labels] in nats: log p_i(x_t | x_<t). `starts` are the first labels of the windows;
nothing is carried from one window to the next. The posterior ensemble is the domain posterior of
Branch-Train-Merge (arXiv 2208.03306) that HDEE reports (arXiv 2502.19385): experts are weighted by
prior times the likelihood of the window so far,

    log p_t = logsumexp_i(L_i + l_it) - logsumexp_i(L_i),   L_i = log pi_i + sum of l_is over s < t.

A window's sum telescopes to logsumexp_i(log pi_i + sum_t l_it), so the ensemble is never worse than
its best expert by more than -log pi_i a window.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_RESAMPLE_CELLS = 1 << 22


def probability_average(l: npt.ArrayLike) -> Floats:  # noqa: E741
    """Log of the experts' mean probability for each label, [labels]."""
    rows = _rows(l)
    return np.asarray(logsumexp(rows, axis=0) - np.log(len(rows)))


def posterior(
    l: npt.ArrayLike,  # noqa: E741
    starts: npt.ArrayLike,
    log_prior: npt.ArrayLike | None = None,
) -> Floats:
    """Each expert's weight before it sees a label, [experts, labels]; columns sum to 1."""
    rows = _rows(l)
    evidence = _evidence(rows, starts, log_prior)
    return np.asarray(np.exp(evidence - logsumexp(evidence, axis=0)))


def posterior_ensemble(
    l: npt.ArrayLike,  # noqa: E741
    starts: npt.ArrayLike,
    log_prior: npt.ArrayLike | None = None,
) -> Floats:
    """Log-likelihood of each label under the posterior ensemble, [labels]; the prior is uniform
    unless given."""
    rows = _rows(l)
    evidence = _evidence(rows, starts, log_prior)
    return np.asarray(logsumexp(evidence + rows, axis=0) - logsumexp(evidence, axis=0))


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
    weights = posterior(rows, starts)
    prior: Floats | None = None
    for begin, end in _bounds(starts, rows.shape[1])[:max_windows]:
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
    sums = np.bincount(index, weights=left - right)
    counts = np.bincount(index).astype(np.float64)
    if len(sums) < 2:
        raise ValueError(f"documents: {len(sums)}, expected at least 2 to resample")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(rng_seed)))
    shares = np.full(len(sums), 1 / len(sums))
    means: list[Floats] = []
    block = max(1, _RESAMPLE_CELLS // len(sums))
    for start in range(0, num_resamples, block):
        draws = rng.multinomial(len(sums), shares, size=min(block, num_resamples - start))
        means.append((draws @ sums) / (draws @ counts))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(sums.sum() / counts.sum()), float(high)


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
    if prior.shape != (num_experts,) or abs(logsumexp(prior)) > 1e-6:
        raise ValueError(f"log_prior: {prior}, expected {num_experts} logs of weights summing to 1")
    evidence = np.empty_like(rows)
    for begin, end in _bounds(starts, rows.shape[1]):
        evidence[:, begin] = prior
        np.cumsum(rows[:, begin : end - 1], axis=1, out=evidence[:, begin + 1 : end])
        evidence[:, begin + 1 : end] += prior[:, None]
    return evidence
