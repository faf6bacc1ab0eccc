"""Token buckets and the judgement of a flow."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.exchange.rates import (
    BURST_SECONDS,
    CHUNK_BYTES,
    SLOWEST_RATE,
    STALL_BYTES,
    STALL_SECONDS,
    Bucket,
    Flow,
    Level,
    reserve,
)


@given(
    rate=st.floats(1e3, 1e9),
    takes=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 5)), min_size=1, max_size=30),
)
def test_over_any_time_no_more_flows_than_the_rate_allows_and_one_burst(rate, takes) -> None:
    level, now, allowed_at = Level(0.0, 0.0), 0.0, []
    for num_bytes, pause in takes:
        now += pause
        level, wait = reserve(level, num_bytes, rate=rate, now=now)
        allowed_at.append((now + wait, num_bytes))
    for first in range(len(allowed_at)):
        start = allowed_at[first][0]
        flowed = sum(num_bytes for at, num_bytes in allowed_at[first + 1 :])
        end = max(at for at, _ in allowed_at[first:])
        slack = max(num_bytes for _, num_bytes in takes)
        assert flowed <= rate * (end - start + BURST_SECONDS) + slack + 1e-6 * rate


@given(rate=st.floats(1e3, 1e9), num_bytes=st.integers(1, 10**8))
def test_whoever_waits_as_told_gets_exactly_the_rate(rate, num_bytes) -> None:
    level, wait = reserve(Level(0.0, 0.0), num_bytes, rate=rate, now=0.0)
    assert wait == pytest.approx(num_bytes / rate)
    assert reserve(level, 0, rate=rate, now=wait)[1] == pytest.approx(0.0, abs=1e-6)


async def test_without_a_limit_nobody_waits_and_chunks_are_large() -> None:
    bucket = Bucket()
    assert bucket.chunk_bytes == CHUNK_BYTES
    assert await bucket.take(10**12) == 0.0


async def test_streams_share_a_limit() -> None:
    loop, bucket = asyncio.get_running_loop(), Bucket(10 * SLOWEST_RATE)
    started = loop.time()
    await asyncio.gather(*(bucket.take(SLOWEST_RATE) for _ in range(6)))
    assert loop.time() - started >= (0.6 - BURST_SECONDS) * 0.99


def test_a_limit_that_looks_like_a_stall_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 32768"):
        Bucket(SLOWEST_RATE - 1)


def test_a_flow_is_stalled_when_a_window_brings_too_little() -> None:
    flow = Flow(100.0)
    assert not flow.note(STALL_BYTES, 100.0 + STALL_SECONDS - 0.1)
    assert not flow.note(0, 100.0 + STALL_SECONDS)
    assert flow.note(STALL_BYTES - 1, 100.0 + 2 * STALL_SECONDS)


def test_time_in_which_nothing_was_wanted_is_not_held_against_a_flow() -> None:
    flow = Flow(0.0)
    flow.excuse(10.0)
    assert flow.seconds_left(STALL_SECONDS) == pytest.approx(10.0)
    assert not flow.note(1, STALL_SECONDS + 9.0)
    assert flow.note(1, STALL_SECONDS + 10.0)


def test_the_end_of_a_window_that_brought_enough_ends_no_stream() -> None:
    flow = Flow(0.0)
    assert not flow.note(STALL_BYTES, STALL_SECONDS - 1.0)
    assert flow.seconds_left(STALL_SECONDS - 1.0) == pytest.approx(STALL_SECONDS)
    assert not flow.note(1, STALL_SECONDS + 1.0)
    assert flow.seconds_left(STALL_SECONDS + 1.0) == pytest.approx(STALL_SECONDS)


def test_silence_is_no_longer_waited_for_after_a_good_start() -> None:
    flow = Flow(0.0)
    assert not flow.note(100 * STALL_BYTES, 1.0)
    assert flow.seconds_left(1.0) == pytest.approx(STALL_SECONDS)
    flow.excuse(5.0)
    assert flow.seconds_left(1.0) == pytest.approx(STALL_SECONDS + 5.0)
