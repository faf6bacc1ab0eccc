"""Learning curves: bounded, even, and the same however often a training was interrupted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.manifests import MAX_CURVE_POINTS, MAX_STATE_BYTES, CurvePoint, TrainerState
from worker.trainer.curve import ended, extended, stride


def grown(last: int, *, curve=(), first: int = 1):
    for step in range(first, last + 1):
        curve = extended(curve, step=step, loss=10.0 / step)
    return curve


@given(last=st.integers(0, 700), cut=st.integers(0, 700))
def test_an_interrupted_curve_is_that_of_an_undisturbed_training(last: int, cut: int) -> None:
    cut = min(cut, last)
    assert grown(last, curve=grown(cut), first=cut + 1) == grown(last)


@given(last=st.integers(1, 2000))
def test_points_are_even_bounded_and_reach_the_end(last: int) -> None:
    curve = grown(last)
    assert [point.step for point in curve] == list(range(stride(last), last + 1, stride(last)))
    assert len(curve) >= min(last, MAX_CURVE_POINTS // 2)
    whole = ended(curve, step=last, loss=10.0 / last)
    assert len(whole) <= MAX_CURVE_POINTS
    assert whole[-1].step == last
    assert ended(whole, step=last, loss=1.0) == whole


@pytest.mark.parametrize("steps", [range(1, 64), range(100, 163), range(137, 201), (150,), ()])
@pytest.mark.parametrize("last", [200, 208, 255, 256, 400])
def test_whatever_a_resumed_checkpoint_has_for_a_curve_it_can_be_gone_on_from(steps, last) -> None:
    points = tuple(CurvePoint(step=step, loss=1.0) for step in steps)
    curve = grown(last, curve=points, first=201)
    for one in (curve if last > 200 else points, ended(curve, step=last, loss=2.0)):
        TrainerState(spec="a" * 64, step=last, loss=2.0, train_seconds=1.0, curve=one)


def test_the_longest_curve_fits_into_the_state() -> None:
    points = tuple(
        {"step": 2**52 + number, "loss": -1234.567891} for number in range(MAX_CURVE_POINTS)
    )
    state = TrainerState(
        spec="a" * 64,
        step=2**53,
        loss=-1.2345678901234567e-300,
        train_seconds=1e9 / 7,
        curve=points,
    )
    assert len(state.model_dump_json()) < MAX_STATE_BYTES


def test_a_curve_without_a_step_is_empty() -> None:
    assert ended((), step=0, loss=None) == ()
