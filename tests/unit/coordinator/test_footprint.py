"""Estimates of memory follow what was measured, within bounds, and no single worker moves them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.footprint import BOUNDS, SLACK, STEPS, Footprints, Peak, bounded, estimate

WORKERS = ("anna", "bert", "carl", "dora", "emil")
RATIOS = st.floats(min_value=1e-6, max_value=1e6)


def wider(spec, ffn_width: int):
    return spec.model_copy(update={"shape": spec.shape.model_copy(update={"ffn_width": ffn_width})})


def peak(spec, ratio: float, worker: str = "anna", device="cpu") -> Peak:
    return Peak(worker, device, spec, int(ratio * estimate(spec, device)))


@given(ratio=RATIOS)
def test_a_factor_stays_within_its_bounds_and_hardly_below_what_was_measured(ratio: float) -> None:
    factor = bounded(ratio)
    assert BOUNDS[0] <= factor <= BOUNDS[1]
    assert factor >= min(ratio - SLACK, BOUNDS[1]) - 1e-9
    assert factor < max(ratio, BOUNDS[0]) + 1 / STEPS + 1e-9


def test_a_measurement_that_agrees_with_the_estimate_changes_nothing() -> None:
    assert [bounded(ratio) for ratio in (0.975, 1.0, 1.0005, 1.015)] == [1.0] * 4
    assert bounded(1.03) == pytest.approx(1.05)


@given(ratio=RATIOS, more=st.floats(min_value=0.0, max_value=10.0))
def test_who_takes_more_memory_is_expected_to_take_no_less(ratio: float, more: float) -> None:
    assert bounded(ratio) <= bounded(ratio + more)


@given(honest=st.floats(min_value=0.85, max_value=1.5), lie=RATIOS)
def test_one_liar_among_three_moves_nothing(make, honest: float, lie: float) -> None:
    told, clean = Footprints(), Footprints()
    for worker in WORKERS[:3]:
        clean.note(peak(make.spec(), honest, worker))
        told.note(peak(make.spec(), lie if worker == "bert" else honest, worker))
    assert told.factor(make.spec(), "cpu") == clean.factor(make.spec(), "cpu")


@given(notes=st.lists(st.tuples(st.sampled_from(WORKERS), RATIOS), max_size=20))
def test_what_a_worker_measured_last_is_what_counts_of_it(make, notes) -> None:
    spec, every, last = make.spec(), Footprints(), Footprints()
    for worker, ratio in notes:
        before = every.factor(spec, "cpu")
        assert every.note(peak(spec, ratio, worker)) == (every.factor(spec, "cpu") != before)
    for worker, ratio in dict(notes).items():
        last.note(peak(spec, ratio, worker))
    assert every.factor(spec, "cpu") == last.factor(spec, "cpu")


def test_a_measurement_speaks_for_other_widths_and_for_no_other_device_or_shape(make) -> None:
    spec = make.spec(ffn_width=64)
    measured = Footprints()
    assert measured.memory_bytes(spec, "cpu") == estimate(spec, "cpu")
    assert measured.note(peak(spec, 1.2))
    assert measured.factor(wider(spec, 128), "cpu") == pytest.approx(1.2)
    assert measured.memory_bytes(spec, "cpu") > 1.15 * estimate(spec, "cpu")
    assert measured.factor(spec, "cuda") == 1.0
    deeper = spec.model_copy(update={"shape": spec.shape.model_copy(update={"num_layers": 9})})
    assert measured.factor(deeper, "cpu") == 1.0
