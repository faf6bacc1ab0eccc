"""Comparisons over replicates: their interval is that of training, and it alone decides."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coordinator.report.replicates import Effect, Effects, combined, effects_of, student_interval
from coordinator.scoring.outcome import Comparison, Verdict
from tests.outcomes import Case, make_results

differences = st.floats(-50, 50).map(lambda value: round(value, 6))


def comparison(difference: float, *, verdict: Verdict = "unclear", reach: float = 1) -> Comparison:
    return Comparison(
        a="b",
        b="a",
        where="python",
        num_domains=1,
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        verdict=verdict,
    )


@given(st.lists(differences, min_size=2, max_size=12))
def test_the_interval_is_students(values: list[float]):
    mean, low, high = student_interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    spread = statistics.stdev(values)
    if spread > 1e-6:
        reach = stats.t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values))
        assert (low, high) == pytest.approx((mean - reach, mean + reach))


@given(st.lists(differences, min_size=2, max_size=12))
def test_no_win_is_claimed_where_the_interval_contains_0(values: list[float]):
    effect = combined([comparison(value, verdict="better") for value in values])
    assert (effect.verdict == "better") == (effect.high < 0)
    assert (effect.verdict == "worse") == (effect.low > 0)


def test_replicates_that_disagree_are_unclear_though_each_was_sure():
    each = [comparison(-3, verdict="better"), comparison(2, verdict="worse")]
    effect = combined(each)
    assert effect.verdict == "unclear"
    assert effect.difference == pytest.approx(-0.5)
    assert effect.spread == pytest.approx(statistics.stdev([-3, 2]))


@given(difference=differences, reach=st.floats(0, 5))
def test_one_run_alone_keeps_its_own_interval_and_is_never_surer_than_it(
    difference: float, reach: float
):
    for verdict in ("better", "worse", "unclear", "tie"):
        one = comparison(difference, verdict=verdict, reach=reach)
        effect = combined([one])
        assert (effect.difference, effect.low, effect.high) == (difference, one.low, one.high)
        assert effect.spread is None
        assert effect.verdict in (verdict, "unclear")
        if effect.verdict in ("better", "worse"):
            assert not effect.low <= 0 <= effect.high


def test_a_tie_stays_a_tie_only_if_it_is_one_in_every_replicate():
    ties = [comparison(0.1, verdict="tie"), comparison(0.2, verdict="tie")]
    assert combined(ties).verdict == "tie"
    assert combined([ties[0], comparison(0.2)]).verdict == "unclear"


@given(st.lists(differences, min_size=1, max_size=5))
def test_turned_around_twice_is_the_same(values: list[float]):
    effect = combined([comparison(value) for value in values])
    assert effect.turned().turned() == effect
    assert effect.turned().low == -effect.high


def test_a_pair_is_found_from_both_sides():
    effect: Effect = combined([comparison(-3, verdict="better")])
    effects = Effects([effect])
    assert effects.between("b", "a", "python") == effect
    turned = effects.between("a", "b", "python")
    assert turned is not None
    assert (turned.verdict, turned.difference, turned.low) == ("worse", 3, 2)
    assert effects.between("a", "b", "law") is None


def test_only_what_every_replicate_compared_is_reported():
    runs = [make_results(Case(rng_seed=1)), make_results(Case(rng_seed=2))]
    less = runs[1].model_copy(update={"comparisons": runs[1].comparisons[:4]})
    assert len(effects_of([runs[0], less]).all) == 4
