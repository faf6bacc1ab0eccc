"""The rate limit: what it lets through, and what it says of itself."""

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.limits import BURST_CALLS, CALLS_A_HEARTBEAT, TooFast, admit, calls_left


@given(
    ahead=st.floats(-100.0, 100.0),
    heartbeat_seconds=st.sampled_from([1.0, 10.0, 120.0]),
    now=st.floats(0.0, 2e9),
)
def test_as_many_calls_are_let_through_at_once_as_it_says_are_left(ahead, heartbeat_seconds, now):
    # Whole calls: a limit that is a rounding error away may go either way.
    pace = heartbeat_seconds / CALLS_A_HEARTBEAT
    allowed_at = now + math.floor(ahead) * pace
    left = calls_left(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds)
    done = 0
    while done <= BURST_CALLS:
        outcome = admit(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds)
        if isinstance(outcome, TooFast):
            break
        allowed_at, done = outcome, done + 1
    assert abs(done - left) <= 1


def test_an_honest_pace_is_never_too_fast():
    allowed_at, now = 0.0, 1000.0
    for _ in range(1000):
        outcome = admit(allowed_at, now=now, heartbeat_seconds=10.0)
        assert not isinstance(outcome, TooFast)
        allowed_at, now = outcome, now + 10.0 / CALLS_A_HEARTBEAT
    assert calls_left(allowed_at, now=now, heartbeat_seconds=10.0) == BURST_CALLS


def test_after_a_burst_the_next_call_waits_for_one_pace_and_costs_nothing():
    allowed_at = 0.0
    for _ in range(BURST_CALLS):
        outcome = admit(allowed_at, now=1000.0, heartbeat_seconds=10.0)
        assert not isinstance(outcome, TooFast)
        allowed_at = outcome
    refused = admit(allowed_at, now=1000.0, heartbeat_seconds=10.0)
    assert isinstance(refused, TooFast)
    assert math.isclose(refused.retry_after_seconds, 1.0)
    assert calls_left(allowed_at, now=1000.0, heartbeat_seconds=10.0) == 0
    assert calls_left(allowed_at, now=1001.0, heartbeat_seconds=10.0) == 1


def test_a_clock_that_jumped_back_silences_nobody():
    assert admit(1e9, now=1000.0, heartbeat_seconds=10.0) == 1001.0
    assert calls_left(1e9, now=1000.0, heartbeat_seconds=10.0) == BURST_CALLS
