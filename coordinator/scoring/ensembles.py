"""Pure: log-likelihoods of a shard's labels to sums over documents, for models and ensembles.

Every mode of every ensemble is arithmetic on the same cached rows. They are read in blocks of whole
windows, and what ensembles have in common (fp64 rows, running sums) is computed once a block.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.scoring.outcome import MODES, Mode, mode_name
from shared.ensemble import (
    cached_prior,
    heaviest,
    mixture,
    posterior,
    probability_average,
    running_sums,
)

TOP_K = (1, 2)
PRIOR_WINDOWS = 100
"""Windows of dev text that a cached prior is estimated on, as in Branch-Train-Merge."""

BLOCK_LABELS = 1 << 12
"""About so many labels are in hand at a time: ten members' rows stay in a core's cache."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ShardScores:
    """One shard under models: name to log-likelihoods, float [labels], in nats.

    `starts` holds the index of each scoring window's first label, int [windows]: a posterior starts
    afresh there; `documents` the document of each window, int [windows]. `num_bytes` is the UTF-8
    length of the shard's documents.
    """

    by_model: Mapping[str, NDArray[np.floating]]
    starts: NDArray[np.integer]
    documents: NDArray[np.integer]
    num_bytes: int

    @property
    def num_labels(self) -> int:
        """Labels of the shard."""
        return len(next(iter(self.by_model.values())))

    def matrix(self, models: Sequence[str], begin: int = 0, end: int | None = None) -> Floats:
        """Log-likelihoods of `models` from label `begin` to `end`, fp64 [models, labels]."""
        return np.stack(
            [np.asarray(self.by_model[model][begin:end], dtype=np.float64) for model in models]
        )

    def label_counts(self) -> Floats:
        """Labels of each document that has any, fp64 [documents]."""
        return self.by_document(np.diff(np.append(self.starts, self.num_labels)))

    def model_sums(self, model: str) -> Floats:
        """The model's log-likelihood of each document that has labels, fp64 [documents]."""
        rows = np.asarray(self.by_model[model], dtype=np.float64)
        return self.by_document(np.add.reduceat(rows, self.starts))

    def by_document(self, windows: NDArray[np.generic]) -> Floats:
        """Sums over the windows of each document, [documents]."""
        _, index = np.unique(self.documents, return_inverse=True)
        return np.asarray(np.bincount(index, weights=windows.astype(np.float64)))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last window (exclusive) of consecutive blocks of whole windows."""
        edges = np.append(self.starts, self.num_labels)
        first = 0
        while first < len(self.starts):
            last = int(np.searchsorted(edges, edges[first] + BLOCK_LABELS, side="right")) - 1
            last = max(first + 1, last)
            yield first, last
            first = last


@dataclass(frozen=True)
class Ensemble:
    """Members by name, and the log prior over them that was estimated on dev text."""

    members: tuple[str, ...]
    log_prior: Floats

    @classmethod
    def of(cls, members: Sequence[str], dev: ShardScores) -> "Ensemble":
        """These members with their prior from the beginning of `dev`: no more of it is read."""
        starts = dev.starts[: PRIOR_WINDOWS + 1]
        end = int(starts[PRIOR_WINDOWS]) if len(starts) > PRIOR_WINDOWS else None
        rows = dev.matrix(members, 0, end)
        prior = cached_prior(rows, starts[:PRIOR_WINDOWS], max_windows=PRIOR_WINDOWS)
        return cls(tuple(members), prior)


def mean_posterior(members: Sequence[str], dev: ShardScores) -> dict[str, float]:
    """The members' mean weights over the labels of `dev`, uniform prior."""
    weights = np.zeros(len(members))
    for first, last in dev.blocks():
        rows, starts = _block(dev, members, first, last)
        weights += posterior(rows, starts).sum(axis=1)
    return dict(zip(members, (weights / weights.sum()).tolist(), strict=True))


def ensemble_sums(scores: ShardScores, ensembles: Sequence[Ensemble]) -> list[dict[str, Floats]]:
    """For each ensemble the sums over documents by mode and top k, named as in results.json.

    Each is fp64 [documents]. A k that is not below the number of members is left out.
    """
    models = sorted({member for ensemble in ensembles for member in ensemble.members})
    rows_of = [[models.index(member) for member in one.members] for one in ensembles]
    windows = [
        {variant: np.empty(len(scores.starts)) for variant in _variants(len(one.members))}
        for one in ensembles
    ]
    for first, last in scores.blocks() if models else ():
        rows, starts = _block(scores, models, first, last)
        sums = running_sums(rows, starts)
        for ensemble, chosen, totals in zip(ensembles, rows_of, windows, strict=True):
            block = _Block(rows[chosen], sums[chosen], ensemble.log_prior)
            for variant, total in totals.items():
                total[first:last] = np.add.reduceat(block.labels(*variant), starts)
    return [
        {
            mode_name(mode, top_k=top_k): scores.by_document(total)
            for (mode, top_k), total in totals.items()
        }
        for totals in windows
    ]


@dataclass(frozen=True)
class _Block:
    """Members' rows and running sums over some windows, [members, labels]."""

    rows: Floats
    sums: Floats
    log_prior: Floats

    def labels(self, mode: Mode, top_k: int | None) -> Floats:
        if mode == "average":
            chosen = self.rows if top_k is None else self.rows[heaviest(self.log_prior, top_k)]
            return probability_average(chosen)
        weights = self.sums if mode == "posterior" else self.sums + self.log_prior[:, None]
        return mixture(self.rows, weights, top_k=top_k)


def _variants(num_members: int) -> list[tuple[Mode, int | None]]:
    tops = [None, *(top_k for top_k in TOP_K if top_k < num_members)]
    return [(mode, top_k) for mode in MODES for top_k in tops]


def _block(
    scores: ShardScores, models: Sequence[str], first: int, last: int
) -> tuple[Floats, NDArray[np.integer]]:
    begin = int(scores.starts[first])
    end = int(scores.starts[last]) if last < len(scores.starts) else scores.num_labels
    return scores.matrix(models, begin, end), scores.starts[first:last] - begin
