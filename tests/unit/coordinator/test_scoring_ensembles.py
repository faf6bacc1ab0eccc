"""Ensembles in blocks say what the formulas say label by label."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scoring.ensembles import (
    BLOCK_LABELS,
    PRIOR_WINDOWS,
    Ensemble,
    ShardScores,
    ensemble_sums,
    mean_posterior,
)
from shared.ensemble import (
    cached_prior,
    heaviest,
    posterior,
    posterior_ensemble,
    probability_average,
)

NAMES = ("one", "two", "three", "four")


def shard_scores(rng_seed: int, *, num_windows: int, longest: int) -> ShardScores:
    rng = np.random.default_rng(rng_seed)
    lengths = rng.integers(1, longest + 1, num_windows)
    documents = np.cumsum(rng.integers(0, 3, num_windows))
    return ShardScores(
        by_model={
            name: -rng.gamma(2.0 + index / 3, 1.0, lengths.sum()).astype(np.float32)
            for index, name in enumerate(NAMES)
        },
        starts=np.cumsum(lengths) - lengths,
        documents=documents,
        num_bytes=int(lengths.sum()),
    )


def by_document(scores: ShardScores, labels: np.ndarray) -> list[float]:
    """Sums over each document, label by label."""
    found: dict[int, float] = {}
    for (begin, end), document in zip(
        pairwise([*scores.starts.tolist(), scores.num_labels]), scores.documents, strict=True
    ):
        found[document] = found.get(document, 0.0) + float(labels[begin:end].sum())
    return list(found.values())


def expected(scores: ShardScores, ensemble: Ensemble) -> dict[str, np.ndarray]:
    rows, starts, prior = scores.matrix(ensemble.members), scores.starts, ensemble.log_prior
    found = {}
    for top_k in (None, 1, 2):
        if top_k is not None and top_k >= len(rows):
            continue
        ending = "" if top_k is None else f" top-{top_k}"
        chosen = rows if top_k is None else rows[heaviest(prior, top_k)]
        found[f"average{ending}"] = probability_average(chosen)
        found[f"posterior{ending}"] = posterior_ensemble(rows, starts, top_k=top_k)
        found[f"cached-prior{ending}"] = posterior_ensemble(rows, starts, prior, top_k=top_k)
    return found


@settings(max_examples=25, deadline=None)
@given(
    rng_seed=st.integers(0, 10_000),
    num_windows=st.integers(1, 30),
    members=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
)
def test_every_mode_is_its_formula_summed_over_documents(rng_seed, num_windows, members) -> None:
    scores = shard_scores(rng_seed, num_windows=num_windows, longest=9)
    ensembles = [Ensemble.of(members, scores), Ensemble.of(NAMES[:2], scores)]
    for ensemble, sums in zip(ensembles, ensemble_sums(scores, ensembles), strict=True):
        direct = expected(scores, ensemble)
        assert sums.keys() == direct.keys()
        for mode, labels in direct.items():
            assert sums[mode] == pytest.approx(by_document(scores, labels), rel=1e-9, abs=1e-9)


def test_blocks_hold_whole_windows_and_all_of_them() -> None:
    scores = shard_scores(1, num_windows=900, longest=40)
    blocks = list(scores.blocks())
    assert len(blocks) > 3
    assert [first for first, _ in blocks[1:]] == [last for _, last in blocks[:-1]]
    assert (blocks[0][0], blocks[-1][1]) == (0, 900)
    edges = [*scores.starts.tolist(), scores.num_labels]
    assert all(edges[last] - edges[first] <= BLOCK_LABELS for first, last in blocks)
    ensemble = Ensemble.of(NAMES, scores)
    (sums,) = ensemble_sums(scores, [ensemble])
    for mode, labels in expected(scores, ensemble).items():
        assert sums[mode] == pytest.approx(by_document(scores, labels), rel=1e-9)


def test_a_window_longer_than_a_block_is_a_block() -> None:
    length = BLOCK_LABELS + 5
    scores = ShardScores({"one": np.full(2 * length, -1.0)}, np.array([0, length]), np.zeros(2), 1)
    assert list(scores.blocks()) == [(0, 1), (1, 2)]


def test_the_prior_is_that_of_dev_text() -> None:
    dev = shard_scores(2, num_windows=12, longest=6)
    ensemble = Ensemble.of(NAMES, dev)
    assert np.array_equal(ensemble.log_prior, cached_prior(dev.matrix(NAMES), dev.starts))


def test_the_mean_posterior_is_over_labels_and_sums_to_one() -> None:
    scores = shard_scores(3, num_windows=600, longest=40)
    weights = mean_posterior(NAMES, scores)
    direct = posterior(scores.matrix(NAMES), scores.starts).mean(axis=1)
    assert list(weights) == list(NAMES)
    assert list(weights.values()) == pytest.approx(direct.tolist())
    assert sum(weights.values()) == pytest.approx(1)


def test_documents_without_labels_do_not_count() -> None:
    scores = ShardScores(
        {"one": np.array([-1.0, -2.0, -4.0])}, np.array([0, 1]), np.array([3, 7]), num_bytes=9
    )
    assert scores.label_counts().tolist() == [1, 2]
    assert scores.model_sums("one").tolist() == [-1, -6]


@pytest.mark.parametrize("num_windows", [1, PRIOR_WINDOWS, PRIOR_WINDOWS + 1, 3 * PRIOR_WINDOWS])
def test_a_prior_is_that_of_all_dev_text_though_only_its_beginning_is_read(num_windows):
    dev = shard_scores(5, num_windows=num_windows, longest=9)
    whole = cached_prior(dev.matrix(NAMES), dev.starts)
    assert np.array_equal(Ensemble.of(NAMES, dev).log_prior, whole)
