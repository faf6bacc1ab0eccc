"""Who is better: by the interval, over one domain or several, and never where it is a tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scoring.statistics import CONFIDENCE, NUM_RESAMPLES, DomainSums, compare
from shared.ensemble import paired_interval, resampled_means


def domain_sums(name, rng_seed=0, *, gap=0.05, num_documents=40, tied=()):
    """Column `b` is worse than `a` by about `gap` nats a label."""
    rng = np.random.default_rng(rng_seed)
    counts = rng.integers(5, 50, num_documents).astype(np.float64)
    a = -3.0 * counts + rng.standard_normal(num_documents)
    b = a - counts * (gap + 0.02 * rng.standard_normal(num_documents))
    return DomainSums(domain=name, sums={"a": a, "b": b}, counts=counts, tied=tied)


def one(*args, pair=("a", "b"), groups=None, **kwargs):
    return compare([domain_sums(*args, **kwargs)], [pair], groups or {})[0]


@pytest.mark.parametrize(("gap", "verdict"), [(0.05, "better"), (-0.05, "worse"), (0.0, "unclear")])
def test_the_verdict_is_that_of_the_interval(gap, verdict) -> None:
    found = one("go", gap=gap)
    assert found.verdict == verdict
    assert found.low < found.difference < found.high
    assert (found.where, found.num_domains) == ("go", 1)


def test_a_difference_is_in_hundredths_of_a_nat_a_label_and_turns_with_the_pair() -> None:
    sums = domain_sums("go")
    expected = 100 * (sums.sums["b"].sum() - sums.sums["a"].sum()) / sums.counts.sum()
    there, back = compare([sums], [("a", "b"), ("b", "a")], {})
    assert there.difference == pytest.approx(expected) == pytest.approx(-5, abs=1)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-there.difference, -there.high, -there.low)
    )


@settings(max_examples=10, deadline=None)
@given(rng_seed=st.integers(0, 1000), gap=st.floats(-0.2, 0.2))
def test_one_domain_has_the_paired_interval_over_its_documents(rng_seed, gap) -> None:
    rng = np.random.default_rng(rng_seed)
    documents = np.repeat(np.arange(12), rng.integers(2, 9, 12))
    a = -rng.gamma(2.0, 1.0, len(documents))
    b = a + gap + 0.1 * rng.standard_normal(len(documents))
    sums = {name: np.bincount(documents, weights=labels) for name, labels in (("a", a), ("b", b))}
    counts = np.bincount(documents).astype(np.float64)
    (found,) = compare([DomainSums("go", sums, counts, ())], [("a", "b")], {})
    low, mean, high = paired_interval(
        b, a, documents, confidence=CONFIDENCE, rng_seed=1, num_resamples=20_000
    )
    reach = high - low
    assert found.difference == pytest.approx(100 * mean)
    assert found.low == pytest.approx(100 * low, abs=15 * reach)
    assert found.high == pytest.approx(100 * high, abs=15 * reach)


def test_a_group_is_the_mean_over_its_domains_whatever_their_sizes() -> None:
    small, large = domain_sums("go", 1, num_documents=5), domain_sums("law", 2, num_documents=200)
    found = compare([small, large], [("a", "b")], {"own": ["go", "law"], "held-out": []})
    assert [one.where for one in found] == ["go", "law", "own"]
    group = found[-1]
    assert group.num_domains == 2
    assert group.difference == pytest.approx((found[0].difference + found[1].difference) / 2)
    assert group.high - group.low < found[0].high - found[0].low


def test_domains_of_a_group_are_resampled_apart_from_each_other() -> None:
    first, second = domain_sums("go"), domain_sums("law")
    found = compare([first, second], [("a", "b")], {"own": ["go", "law"]})
    assert found[0].difference == found[1].difference
    assert found[0].low != found[1].low, "equal documents, other draws"
    reach = found[0].high - found[0].low
    assert found[2].high - found[2].low == pytest.approx(reach / np.sqrt(2), rel=0.15)


def test_the_same_documents_give_the_same_interval_again() -> None:
    assert one("go") == one("go")


def test_columns_of_a_resample_come_from_the_same_documents() -> None:
    rng = np.random.default_rng(0)
    sums, counts = rng.random((9, 1)), rng.integers(1, 5, 9).astype(np.float64)
    both = resampled_means(np.hstack([sums, sums]), counts, rng_seed=2, num_resamples=30)
    assert np.array_equal(both[:, 0], both[:, 1])


def test_a_tie_by_construction_is_no_win_however_sure_the_interval() -> None:
    tied = (("a", "b", "c"),)
    assert one("go", tied=tied).verdict == "tie"
    half = [domain_sums("go", tied=tied), domain_sums("law")]
    found = compare(half, [("a", "b")], {"own": ["go", "law"]})
    assert [one.verdict for one in found] == ["tie", "better", "better"]
    both = [domain_sums("go", tied=tied), domain_sums("law", tied=tied)]
    assert compare(both, [("a", "b")], {"own": ["go", "law"]})[-1].verdict == "tie"


def test_a_single_document_tells_nothing_apart() -> None:
    found = one("go", num_documents=1)
    assert found.verdict == "unclear"
    assert found.low == pytest.approx(found.difference) == pytest.approx(found.high)


def test_equal_columns_differ_by_nothing() -> None:
    same = domain_sums("go", gap=0.0).sums["a"]
    sums = DomainSums("go", {"a": same, "b": same.copy()}, np.full(len(same), 3.0), ())
    (found,) = compare([sums], [("a", "b")], {})
    assert (found.difference, found.low, found.high, found.verdict) == (0, 0, 0, "unclear")


@pytest.mark.parametrize("gap", [0.0, 0.01])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(gap) -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        counts = np.full(60, 20.0)
        difference = counts * (gap + 0.1 * rng.standard_normal(60))
        sums = DomainSums("go", {"a": np.zeros(60), "b": -difference}, counts, ())
        (found,) = compare([sums], [("a", "b")], {})
        hits += found.low <= -100 * gap <= found.high
    assert 0.9 * 200 <= hits <= 0.99 * 200
    assert NUM_RESAMPLES == 2000
