"""How fast a device really was: the start of an attempt is not held against it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.speeds import STARTUP_SECONDS, STARTUP_SHARE, observed_speed

SPEEDS = st.floats(1e9, 1e15)
SECONDS = st.floats(0.1, 1e6)


@given(speed=SPEEDS, training=SECONDS, startup=st.floats(0.0, STARTUP_SECONDS))
def test_one_who_tells_the_truth_is_as_fast_as_it_trains_however_tiny_its_work(
    speed, training, startup
):
    startup = min(startup, training * STARTUP_SHARE / (1.0 - STARTUP_SHARE))
    found = observed_speed(flops=speed * training, seconds=training + startup, told=speed)
    assert found == pytest.approx(speed, rel=1e-6)


@given(flops=st.floats(1e9, 1e18), seconds=SECONDS, told=st.floats(0.0, 1e18))
def test_what_a_worker_tells_counts_within_what_a_start_explains(flops, seconds, told):
    found = observed_speed(flops=flops, seconds=seconds, told=told)
    by_clock = flops / seconds
    assert by_clock * (1 - 1e-9) <= found <= by_clock / (1.0 - STARTUP_SHARE) * (1 + 1e-9)
    if told <= by_clock:
        assert found == by_clock
    if seconds >= 100 * STARTUP_SECONDS:
        assert found <= 1.02 * by_clock


@given(flops=st.floats(1e9, 1e18), seconds=SECONDS, told=st.floats(0.0, 1e18))
def test_one_that_took_longer_for_the_same_is_never_faster(flops, seconds, told):
    found = observed_speed(flops=flops, seconds=seconds, told=told)
    later = observed_speed(flops=flops, seconds=1.5 * seconds, told=told)
    assert later <= found * (1 + 1e-9)


def test_a_tiny_first_work_does_not_make_a_device_seem_slow():
    """Four seconds of training behind ten of loading."""
    assert observed_speed(flops=4e12, seconds=14.0, told=1e12) == 1e12
    assert observed_speed(flops=4e12, seconds=14.0, told=0.0) == pytest.approx(4e12 / 14)
