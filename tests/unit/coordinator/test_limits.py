"""How often one worker may call: never more than its even pace and one burst."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.api.limits import BURST_CALLS, CALLS_A_HEARTBEAT, TooFast, admit

HEARTBEAT = 20.0
PACE = HEARTBEAT / CALLS_A_HEARTBEAT


def answered(times: list[float], allowed_at: float = 0.0) -> list[float]:
    """The times of those calls that are answered."""
    found = []
    for now in times:
        after = admit(allowed_at, now=now, heartbeat_seconds=HEARTBEAT)
        if not isinstance(after, TooFast):
            allowed_at = after
            found.append(now)
    return found


@given(st.lists(st.floats(0.0, 30.0), max_size=400))
def test_no_window_holds_more_than_a_burst_and_the_even_pace(gaps):
    now, times = 1000.0, []
    for gap in gaps:
        now += gap if gap > 29.0 else gap / 100
        times.append(now)
    calls = answered(times)
    for first in range(0, len(calls), 7):
        for last in range(first, len(calls), 7):
            seconds = calls[last] - calls[first]
            assert last - first + 1 <= BURST_CALLS + seconds / PACE + 1e-6


@given(st.lists(st.floats(PACE, 10 * PACE), max_size=200))
def test_an_honest_pace_is_never_refused(gaps):
    times = [1000.0 + sum(gaps[:number]) for number in range(len(gaps))]
    assert answered(times) == times


def test_a_burst_is_answered_and_the_next_call_told_when_to_come():
    calls = answered([1000.0] * (BURST_CALLS + 5))
    assert len(calls) == BURST_CALLS
    full = 1000.0 + BURST_CALLS * PACE
    refused = admit(full, now=1000.0, heartbeat_seconds=HEARTBEAT)
    assert isinstance(refused, TooFast)
    assert refused.retry_after_seconds == pytest.approx(PACE)
    later = admit(full, now=1000.0 + PACE + 1e-6, heartbeat_seconds=HEARTBEAT)
    assert not isinstance(later, TooFast)


@given(st.integers(2, 8))
def test_several_leases_have_the_pace_of_as_many_workers(num_leases):
    now, allowed_at, calls = 1000.0, 1000.0 + BURST_CALLS * PACE, 0
    for _ in range(1000):
        now += PACE / 20
        after = admit(allowed_at, now=now, heartbeat_seconds=HEARTBEAT, num_leases=num_leases)
        if not isinstance(after, TooFast):
            allowed_at, calls = after, calls + 1
    assert calls == pytest.approx(50 * num_leases, rel=0.05)


@given(st.integers(0, 300))
def test_a_refused_call_costs_nothing(num_refused):
    full = 1000.0 + BURST_CALLS * PACE
    calls = answered([1000.0] * num_refused + [1000.0 + PACE + 1e-6], allowed_at=full)
    assert len(calls) == 1


@given(st.floats(0.0, 1e9))
def test_a_clock_that_jumped_back_silences_nobody_for_longer_than_a_burst(jump):
    allowed_at = 1e9 + jump
    outcome = admit(allowed_at, now=1e9, heartbeat_seconds=HEARTBEAT)
    if isinstance(outcome, TooFast):
        assert outcome.retry_after_seconds <= BURST_CALLS * PACE
