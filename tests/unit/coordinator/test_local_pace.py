"""How long is left of a run on this machine: what earlier processes did has no part in the pace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.local.pace import Pace, seconds_left
from coordinator.local.tally import Curve, Tally

ELAPSED = st.floats(0.1, 1e6)
FLOPS = st.integers(0, 2**50)
"""Whole numbers, of which floats hold sums and differences exactly."""


@given(elapsed=ELAPSED, own=FLOPS.filter(bool), before=FLOPS, rest=FLOPS)
def test_what_was_done_before_neither_hastens_nor_delays_the_rest(elapsed, own, before, rest):
    fresh = seconds_left(elapsed, done=own, before=0, total=own + rest)
    resumed = seconds_left(elapsed, done=before + own, before=before, total=before + own + rest)
    assert resumed == fresh == pytest.approx(elapsed * rest / own)


@given(elapsed=ELAPSED, speed=st.floats(1e3, 1e12), before=st.floats(0.0, 1e12))
def test_at_an_even_pace_every_look_tells_the_same_end(elapsed, speed, before):
    total = before + 10 * speed * elapsed
    ends = [
        elapsed * share + seconds_left(elapsed * share, done=done, before=before, total=total)
        for share in (1, 5, 10)
        for done in [before + speed * elapsed * share]
    ]
    assert ends == pytest.approx([10 * elapsed] * 3, rel=1e-3)


def test_there_is_no_pace_before_anything_is_done_here():
    assert seconds_left(5.0, done=100.0, before=100.0, total=200.0) is None
    assert seconds_left(0.0, done=100.0, before=0.0, total=200.0) is None
    assert seconds_left(5.0, done=90.0, before=100.0, total=200.0) is None
    assert seconds_left(5.0, done=200.0, before=100.0, total=200.0) == 0.0


def standing(**steps: int) -> Tally:
    """Curves of 1,000 steps each that have come so far."""
    curves = {name: Curve(step, 1000, 2.0) for name, step in steps.items()}
    return Tally(curves, trained=0, planned=len(curves))


def test_a_training_that_goes_on_from_a_checkpoint_brings_its_steps_along():
    pace = Pace.begin(standing(a=500, b=0), 100.0)
    now = standing(a=510, b=400)
    pace = pace.after(now, {"a": 500, "b": 400}, 101.0)
    assert pace.seconds_left(now) == pytest.approx((490 + 600) / 10)
    later = standing(a=520, b=410)
    pace = pace.after(later, {"a": 500, "b": 400}, 102.0)
    assert pace.seconds_left(later) == pytest.approx((480 + 590) / 15)


def test_steps_that_were_made_here_count_for_what_goes_on_from_them():
    pace = Pace.begin(standing(a=0), 0.0).after(standing(a=300), {"a": 0}, 30.0)
    gone = standing(a=0)
    pace = pace.after(gone, {}, 30.5)
    assert pace.seconds_left(gone) is None
    again = standing(a=310)
    pace = pace.after(again, {"a": 300}, 31.0)
    assert pace.seconds_left(again) == pytest.approx(69.0)


def test_a_look_before_more_is_heard_tells_the_same():
    now = standing(a=100)
    pace = Pace.begin(standing(a=0), 0.0).after(now, {"a": 0}, 10.0)
    assert pace.seconds_left(now) == pytest.approx(90.0)
    assert pace.after(now, {"a": 0}, 10.9) == pace
    later = standing(a=110)
    assert pace.after(later, {"a": 0}, 20.0).seconds_left(later) == pytest.approx(890 * 20 / 110)


@given(
    curves=st.lists(
        st.tuples(st.integers(0, 900), st.integers(1, 100), st.booleans()), min_size=1, max_size=6
    ),
    looks=st.lists(st.integers(1, 20), max_size=4),
)
def test_at_one_step_a_second_what_is_left_is_as_many_seconds_as_steps(curves, looks):
    """Each curve is trained on for some steps after the other, whether or not its first steps were
    known when the clock started."""
    names = [f"curve-{number}" for number in range(len(curves))]
    steps = {
        name: first if known else 0 for name, (first, _, known) in zip(names, curves, strict=True)
    }
    pace, clock = Pace.begin(standing(**steps), 50.0), 50.0
    for name, (first, more, _) in zip(names, curves, strict=True):
        for made in sorted({min(more, look) for look in looks} | {more}):
            clock += first + made - max(first, steps[name])
            steps[name] = first + made
            now = standing(**steps)
            pace = pace.after(now, {name: first}, clock)
            left = sum(1000 - step for step in steps.values())
            assert pace.seconds_left(now) == pytest.approx(left)
