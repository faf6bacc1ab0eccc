"""How fast a device is: at the steps on offer, as far as it can make them in a short time."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.specs import Lora, StepShape
from shared.sizing import step_flops, training_memory_bytes
from worker import timing
from worker.timing import in_words, measurable, measure, shortened, spec_of

PLENTY = 10**12
FIXED = "2 layers of 32 (FFN 40) on 2 x 32 tokens"


@pytest.fixture(autouse=True)
def short(make, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One step of each shape is enough for these tests, and a small one where none is on offer.

    However busy this machine is, no step of theirs counts as a long one.
    """
    fixed = make.spec(ffn_width=40).step_shape
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    monkeypatch.setattr(timing, "LONG_STEP_SECONDS", 1000.0)
    monkeypatch.setattr(timing, "fixed_step", lambda _device: fixed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changed(step: StepShape, **shape: int) -> StepShape:
    return step.model_copy(update={"shape": step.shape.model_copy(update=shape)})


def test_the_figure_is_of_the_steps_on_offer_and_says_of_which(make) -> None:
    narrow, wide = make.spec(ffn_width=32).step_shape, make.spec(ffn_width=96).step_shape
    found = measure("cpu", (narrow, wide), memory_bytes=PLENTY)
    assert found.steps == (in_words(spec_of(narrow)), in_words(spec_of(wide)))
    assert found.flops_per_second > 1e6
    assert measure("cpu", (), memory_bytes=PLENTY).steps == (FIXED,)


def test_what_is_predicted_and_what_is_measured_count_the_same_flops(make) -> None:
    frozen = {"kind": "expert", "parent": "0" * 64, "trains": "ffn"}
    for spec in (make.spec(), make.spec().model_copy(update=frozen)):
        assert step_flops(spec_of(spec.step_shape)) == step_flops(spec)
        assert spec_of(spec.step_shape).trains == spec.trains


def test_an_adapter_is_measured_as_one(make) -> None:
    lora = {"kind": "expert", "parent": "0" * 64, "trains": "lora", "lora": Lora(rank=2, alpha=2.0)}
    spec = make.spec().model_copy(update=lora)
    assert step_flops(spec_of(spec.step_shape)) == step_flops(spec)
    assert "rank 2" in measure("cpu", (spec.step_shape,), memory_bytes=PLENTY).steps[0]


def test_steps_that_do_not_fit_into_memory_are_left_out(make) -> None:
    narrow, wide = make.spec(ffn_width=32), make.spec(ffn_width=2**14)
    room = training_memory_bytes(narrow, device="cpu")
    on_offer = (narrow.step_shape, wide.step_shape)
    assert measurable(wide.step_shape, "cpu", memory_bytes=room) is None
    assert measure("cpu", on_offer, memory_bytes=room).steps == (in_words(narrow),)
    assert measure("cpu", on_offer, memory_bytes=room - 1).steps == (FIXED,)


def test_steps_that_would_take_this_machine_very_long_are_left_out(make) -> None:
    huge = changed(make.spec().step_shape, ffn_width=2**50, hidden_size=2**40)
    assert measure("cpu", (huge,), memory_bytes=2**200).steps == (FIXED,)


def test_what_no_training_makes_is_left_out(make) -> None:
    step = make.spec().step_shape
    for broken in (
        step.model_copy(update={"trains": "lora"}),
        step.model_copy(update={"sequence_length": step.shape.context_length + 1}),
    ):
        assert measure("cpu", (broken,), memory_bytes=PLENTY).steps == (FIXED,)


@given(
    micro_batch=st.integers(1, 9),
    accumulation=st.integers(1, 9),
    sequences=st.floats(0.0, 100.0, allow_nan=False),
)
def test_a_long_step_is_made_of_as_many_sequences_as_are_allowed(
    make, micro_batch: int, accumulation: int, sequences: float
) -> None:
    step = make.spec().step_shape
    changes = {"micro_batch": micro_batch, "accumulation": accumulation}
    spec = spec_of(step.model_copy(update=changes))
    one = step_flops(spec) / (micro_batch * accumulation)
    found = shortened(spec, most_flops=sequences * one)
    if found is None:
        assert sequences < 1.001
        return
    made = found.train.micro_batch * found.train.accumulation
    assert step_flops(found) == pytest.approx(made * one)
    assert made <= sequences * 1.001
    assert found.train.micro_batch <= micro_batch
    if sequences >= micro_batch * accumulation * 1.001:
        assert found == spec
    # A micro-batch keeps its size as long as one of them is allowed.
    assert found.train.micro_batch == micro_batch or found.train.accumulation == 1
