"""Backoff grows to its cap and never leaves its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.retry import MAX_TOLD_SECONDS, MIN_TOLD_SECONDS, backoff_seconds, told_seconds


@given(
    attempt=st.integers(0, 10_000),
    base=st.floats(0.01, 10),
    factor=st.floats(1, 1000),
    random=st.floats(0, 1),
)
def test_wait_stays_between_half_of_the_full_one_and_the_cap(attempt, base, factor, random):
    cap = base * factor
    wait = backoff_seconds(attempt, base=base, cap=cap, random=random)
    assert base * 0.5 <= wait * (1 + 1e-9)
    assert wait <= cap * (1 + 1e-9)


@given(attempt=st.integers(0, 100), random=st.floats(0, 1))
def test_a_later_try_never_waits_less(attempt, random):
    waits = [
        backoff_seconds(number, base=1.0, cap=60.0, random=random)
        for number in (attempt, attempt + 1)
    ]
    assert waits[0] <= waits[1]


@pytest.mark.parametrize(("attempt", "random"), [(-1, 0.5), (0, -0.1), (0, 1.1)])
def test_numbers_that_make_no_sense_are_refused(attempt, random):
    with pytest.raises(ValueError, match="expected"):
        backoff_seconds(attempt, base=1.0, cap=2.0, random=random)


@given(told=st.floats(MIN_TOLD_SECONDS, MAX_TOLD_SECONDS), random=st.floats(0, 1))
def test_who_was_told_when_to_come_again_never_comes_sooner_and_little_later(told, random):
    assert told <= told_seconds(told, random=random) <= told * 1.25 + 1e-9


@pytest.mark.parametrize(("told", "wait"), [(0.0, MIN_TOLD_SECONDS), (1e30, MAX_TOLD_SECONDS)])
def test_a_told_wait_is_neither_none_nor_endless(told, wait):
    assert told_seconds(told, random=0.0) == wait
