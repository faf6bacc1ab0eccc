"""What the ensembles promise, whatever the likelihoods."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from shared.ensemble import (
    bits_per_byte,
    cached_prior,
    heaviest,
    mixture,
    paired_interval,
    perplexity,
    posterior,
    posterior_ensemble,
    probability_average,
    resampled_means,
    running_sums,
)

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Likelihoods [experts, labels], window starts, and a log prior."""
    num_experts, num_labels = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    rows = draw(hnp.arrays(np.float64, (num_experts, num_labels), elements=st.floats(-80, 0)))
    cuts = draw(st.sets(st.integers(1, 39), max_size=4))
    starts = np.asarray([0, *sorted(cut for cut in cuts if cut < num_labels)])
    weights = draw(hnp.arrays(np.float64, num_experts, elements=st.floats(0.01, 1)))
    return rows, starts, np.log(weights / weights.sum())


def windows(starts: np.ndarray, num_labels: int) -> list[tuple[int, int]]:
    return list(pairwise([*starts.tolist(), num_labels]))


@given(cases())
def test_a_window_telescopes_to_the_mixture_of_whole_windows(case: Case) -> None:
    rows, starts, prior = case
    labels = posterior_ensemble(rows, starts, prior)
    for begin, end in windows(starts, rows.shape[1]):
        whole = logsumexp(prior + rows[:, begin:end].sum(axis=1))
        assert labels[begin:end].sum() == pytest.approx(whole, rel=1e-12, abs=1e-9)


@given(cases())
def test_a_window_is_never_worse_than_its_best_expert_by_more_than_the_prior(case: Case) -> None:
    rows, starts, prior = case
    labels = posterior_ensemble(rows, starts, prior)
    for begin, end in windows(starts, rows.shape[1]):
        bound = np.min(-rows[:, begin:end].sum(axis=1) - prior)
        assert -labels[begin:end].sum() <= bound + 1e-9


@given(cases(), st.integers(1, 4))
def test_identical_experts_are_that_expert(case: Case, copies: int) -> None:
    rows, starts, _ = case
    same = np.tile(rows[:1], (copies, 1))
    assert np.allclose(posterior_ensemble(same, starts), rows[0], rtol=0, atol=1e-9)
    assert np.allclose(probability_average(same), rows[0], rtol=0, atol=1e-12)


@given(cases())
def test_the_probability_average_is_no_worse_than_the_mean_of_losses(case: Case) -> None:
    rows, _, _ = case
    assert (-probability_average(rows) <= -rows.mean(axis=0) + 1e-12).all()
    assert (probability_average(rows) <= rows.max(axis=0) + 1e-12).all()


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_experts_changes_nothing(case: Case, random) -> None:
    rows, starts, prior = case
    order = list(range(len(rows)))
    random.shuffle(order)
    assert np.allclose(
        posterior_ensemble(rows[order], starts, prior[order]),
        posterior_ensemble(rows, starts, prior),
        rtol=0,
        atol=1e-9,
    )
    assert np.allclose(probability_average(rows[order]), probability_average(rows), atol=1e-12)
    assert np.allclose(cached_prior(rows[order], starts), cached_prior(rows, starts)[order])


@given(cases())
def test_weights_sum_to_one_and_begin_with_the_prior(case: Case) -> None:
    rows, starts, prior = case
    weights = posterior(rows, starts, prior)
    assert np.allclose(weights.sum(axis=0), 1)
    assert np.allclose(weights[:, starts], np.exp(prior)[:, None])


@given(cases())
def test_a_weight_depends_on_earlier_labels_only(case: Case) -> None:
    rows, starts, prior = case
    changed = rows.copy()
    changed[:, -1] = -1.0
    assert np.allclose(posterior(rows, starts, prior), posterior(changed, starts, prior))


@given(cases())
def test_windows_do_not_touch_each_other(case: Case) -> None:
    rows, starts, prior = case
    labels = posterior_ensemble(rows, starts, prior)
    for begin, end in windows(starts, rows.shape[1]):
        assert np.allclose(labels[begin:end], posterior_ensemble(rows[:, begin:end], [0], prior))


@given(cases())
def test_running_sums_and_a_prior_are_the_posterior_ensemble(case: Case) -> None:
    rows, starts, prior = case
    assert np.allclose(
        mixture(rows, running_sums(rows, starts) + prior[:, None] + 7.0),
        posterior_ensemble(rows, starts, prior),
        rtol=0,
        atol=1e-9,
    )


@given(cases(), st.integers(0, 3))
def test_the_top_of_as_many_as_there_are_is_the_whole_ensemble(case: Case, more: int) -> None:
    rows, starts, prior = case
    whole = posterior_ensemble(rows, starts, prior)
    assert np.array_equal(posterior_ensemble(rows, starts, prior, top_k=len(rows) + more), whole)
    assert heaviest(prior, len(rows) + more) == list(range(len(rows)))


@given(cases(), st.integers(1, 5))
def test_the_top_k_are_a_distribution_over_the_k_heaviest(case: Case, top_k: int) -> None:
    rows, starts, prior = case
    weights = posterior(rows, starts, prior)
    kept = posterior(rows, starts, prior, top_k=top_k)
    assert np.allclose(kept.sum(axis=0), 1)
    assert (np.count_nonzero(kept, axis=0) >= 1).all()
    smallest = np.sort(weights, axis=0)[-min(top_k, len(rows))]
    assert (weights[kept > 0] >= np.broadcast_to(smallest, kept.shape)[kept > 0] * 0.999).all()
    left_out = (kept == 0) & (weights > 0)
    assert (weights[left_out] <= np.broadcast_to(smallest, kept.shape)[left_out] * 1.001).all()
    mixed = np.log(np.sum(kept * np.exp(rows), axis=0))
    assert np.allclose(posterior_ensemble(rows, starts, prior, top_k=top_k), mixed)


@given(cases(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_experts_does_not_change_the_top_k(case: Case, top_k: int, random) -> None:
    rows, starts, prior = case
    order = list(range(len(rows)))
    random.shuffle(order)
    assert np.allclose(
        posterior_ensemble(rows[order], starts, prior[order], top_k=top_k),
        posterior_ensemble(rows, starts, prior, top_k=top_k),
        rtol=0,
        atol=1e-6,
    )
    assert {order[index] for index in heaviest(prior[order], top_k)} == set(heaviest(prior, top_k))


@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_the_top_of_identical_experts_is_that_expert(case: Case, copies: int, top_k: int) -> None:
    rows, starts, _ = case
    same = np.tile(rows[:1], (copies, 1))
    ensemble = posterior_ensemble(same, starts, top_k=top_k)
    assert np.allclose(ensemble, rows[0], rtol=0, atol=1e-9)


def test_experts_that_tie_for_the_last_place_all_count() -> None:
    rows = np.asarray([[-1.0, -1.0], [-2.0, -1.0], [-3.0, -1.0]])
    weights = posterior(rows, [0], top_k=1)
    assert np.allclose(weights[:, 0], 1 / 3)
    assert np.allclose(weights[:, 1], [1, 0, 0])
    assert heaviest(np.log([0.25, 0.5, 0.25]), 2) == [0, 1, 2]
    assert heaviest(np.log([0.25, 0.5, 0.25]), 1) == [1]


def test_three_experts_cost_at_most_a_thousandth_of_a_nat_a_token_over_a_long_window() -> None:
    rows = np.full((3, 1024), -5.0)
    rows[0] = -1.0
    labels = posterior_ensemble(rows, [0])
    assert -labels.mean() - 1.0 == pytest.approx(np.log(3) / 1024, rel=1e-6)


def test_hopeless_experts_do_not_underflow() -> None:
    rows = np.full((2, 1000), -80.0)
    rows[1] = -1e-3
    labels = posterior_ensemble(rows, [0])
    assert np.isfinite(labels).all()
    assert np.isfinite(cached_prior(rows, [0])).all()


@given(cases(), st.floats(0.05, 1))
def test_the_cached_prior_is_the_moving_average_of_posteriors(case: Case, decay: float) -> None:
    rows, starts, _ = case
    weights = posterior(rows, starts)
    expected: np.ndarray | None = None
    for begin, end in windows(starts, rows.shape[1]):
        mean = weights[:, begin:end].mean(axis=1)
        expected = mean if expected is None else (1 - decay) * expected + decay * mean
    prior = cached_prior(rows, starts, decay=decay)
    assert np.allclose(np.exp(prior), expected)
    assert np.exp(prior).sum() == pytest.approx(1)


def test_the_cached_prior_reads_at_most_so_many_windows() -> None:
    rng = np.random.default_rng(0)
    rows = -rng.random((3, 900)) * 5
    starts = np.arange(0, 900, 3)
    assert np.array_equal(cached_prior(rows, starts), cached_prior(rows[:, :300], starts[:100]))
    assert not np.array_equal(
        cached_prior(rows, starts, max_windows=50), cached_prior(rows, starts)
    )


def test_early_windows_keep_their_weight_in_the_cached_prior() -> None:
    rows = np.full((2, 30), -5.0)
    rows[0, :15] = -0.1
    rows[1, 15:] = -0.1
    prior = np.exp(cached_prior(rows, np.arange(0, 30, 15)))
    assert 0.55 < prior[0] < 0.75


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: posterior_ensemble([[np.nan, 0.0]], [0]), "expert 0, label 0"),
        (lambda: posterior_ensemble([[0.0, -np.inf]], [0]), "expert 0, label 1"),
        (lambda: posterior_ensemble([0.0, 1.0], [0]), r"shape \(2,\)"),
        (lambda: posterior_ensemble([[0.0, 1.0]], [1]), "starts"),
        (lambda: posterior_ensemble([[0.0, 1.0]], [0, 2]), "starts"),
        (lambda: posterior_ensemble([[0.0, 1.0]], [0, 0]), "starts"),
        (lambda: posterior_ensemble([[0.0], [1.0]], [0], [0.0, 0.0]), "log_prior"),
        (lambda: posterior_ensemble([[0.0], [1.0]], [0], [0.0]), "log_prior"),
        (lambda: posterior_ensemble([[0.0], [1.0]], [0], top_k=0), "top_k 0"),
        (lambda: cached_prior([[0.0]], [0], decay=0.0), "decay"),
        (lambda: cached_prior([[0.0]], [0], max_windows=0), "max_windows"),
        (lambda: cached_prior(np.empty((2, 0)), []), "no labels"),
        (lambda: perplexity([]), "lls"),
        (lambda: bits_per_byte([-1.0], 0), "num_bytes"),
    ],
)
def test_bad_input_is_refused_by_name(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_measures_of_a_fair_coin() -> None:
    coins = np.full(16, np.log(0.5))
    assert perplexity(coins) == pytest.approx(2)
    assert bits_per_byte(coins, 2) == pytest.approx(8)


def interval(a, b, documents, **changes: float) -> tuple[float, float, float]:
    settings = {"confidence": 0.95, "rng_seed": 3, "num_resamples": 500, **changes}
    return paired_interval(a, b, documents, **settings)


def test_an_interval_surrounds_its_mean_and_repeats() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), rng.integers(1, 30, 40))
    a = -rng.random(len(documents))
    b = a - 0.1 + 0.05 * rng.standard_normal(len(documents))
    low, mean, high = interval(a, b, documents)
    assert low < mean < high
    assert mean == pytest.approx((a - b).mean())
    assert 0.08 < low < high < 0.12
    assert interval(a, b, documents) == (low, mean, high)
    assert interval(b, a, documents) == pytest.approx((-high, -mean, -low))
    wide = interval(a, b, documents, confidence=0.99)
    assert wide[0] < low
    assert wide[2] > high


def test_differences_of_resampled_columns_are_the_paired_interval() -> None:
    rng = np.random.default_rng(2)
    documents = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    a, b = rng.random((2, len(documents)))
    sums = np.stack([np.bincount(documents, weights=column) for column in (a, b)], axis=1)
    counts = np.bincount(documents).astype(np.float64)
    means = resampled_means(sums, counts, rng_seed=3, num_resamples=500)
    assert means.shape == (500, 2)
    low, high = np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])
    assert interval(a, b, documents) == pytest.approx((low, (a - b).mean(), high))
    assert not np.array_equal(
        means, resampled_means(sums, counts, rng_seed=[3, 1], num_resamples=500)
    )


def test_labels_of_one_document_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(1)
    effects = rng.standard_normal(20)
    documents = np.repeat(np.arange(20), 200)
    difference = effects[documents]
    low, _, high = interval(difference, np.zeros_like(difference), documents)
    by_label = np.arange(len(difference))
    naive_low, _, naive_high = interval(difference, np.zeros_like(difference), by_label)
    assert high - low > 5 * (naive_high - naive_low)


def test_a_constant_difference_has_no_spread() -> None:
    low, mean, high = interval(np.ones(6), np.zeros(6), [0, 0, 1, 1, 2, 2])
    assert low == mean == high == 1


@pytest.mark.parametrize(
    ("changes", "documents", "match"),
    [
        ({}, [0, 0], "at least 2"),
        ({}, [0], "shapes"),
        ({"confidence": 1.0}, [0, 1], "confidence"),
        ({"num_resamples": 0}, [0, 1], "num_resamples"),
    ],
)
def test_an_interval_that_cannot_be_had_is_refused(changes, documents, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        interval([0.0, 1.0], [0.0, 0.0], documents, **changes)
