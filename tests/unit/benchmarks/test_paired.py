"""Ratios of pairs: what is found is what was put in."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paired import paired_ratio, turns


def test_a_known_ratio_is_found_whatever_slows_both_of_a_pair() -> None:
    load = [1.0, 3.0, 0.5, 8.0]
    found = paired_ratio([1.25 * one for one in load], load)
    assert (found.mean, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))
    assert found.pairs == 4


def test_the_interval_covers_the_true_ratio_in_about_95_of_100_runs() -> None:
    draw, covered = random.Random(1), 0
    for _ in range(1000):
        below = [draw.uniform(1, 4) for _ in range(30)]
        above = [1.1 * one * draw.lognormvariate(0, 0.1) for one in below]
        found = paired_ratio(above, below)
        covered += found.low <= 1.1 <= found.high
    assert 930 <= covered <= 970


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=20),
)
def test_the_ratio_the_other_way_round_is_its_inverse(pairs: list[tuple[float, float]]) -> None:
    above, below = zip(*pairs, strict=True)
    there, back = paired_ratio(above, below), paired_ratio(below, above)
    assert there.low <= there.mean <= there.high
    assert (back.mean, back.low, back.high) == pytest.approx(
        (1 / there.mean, 1 / there.high, 1 / there.low)
    )


@pytest.mark.parametrize("values", [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_is_no_pairs_of_positive_values_is_refused(
    values: tuple[list[float], list[float]],
) -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio(*values)


def test_everybody_has_a_turn_in_every_round_and_a_seed_gives_one_order() -> None:
    order = turns("abc", 20, rng_seed=1)
    assert all(sorted(names) == ["a", "b", "c"] for names in order)
    assert len(set(map(tuple, order))) > 1
    assert order == turns("abc", 20, rng_seed=1)
