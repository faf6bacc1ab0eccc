"""Trial steps: where they are worth it, and what a real trainer child finds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.specs import Lora
from shared.sizing import step_flops, training_memory_bytes
from shared.training.assignment import PilotAssignment
from shared.training.pilot import (
    OFFER_SHARE,
    START_SECONDS,
    Fits,
    Pilots,
    is_worth_a_trial,
)


def pilot(spec, **changes) -> PilotAssignment:
    values = {"spec": spec, "device": "cpu", "num_threads": 1, "memory_bytes": None}
    return PilotAssignment.model_validate({**values, **changes})


def test_only_what_takes_much_of_the_memory_is_tried_on_a_cpu(make) -> None:
    spec = make.spec()
    estimate = training_memory_bytes(spec, device="cpu")
    plenty = make.capability(free_memory_bytes=2 * estimate)
    tight = make.capability(free_memory_bytes=2 * estimate - 2)
    assert not is_worth_a_trial(spec, plenty, expires_in=600.0)
    assert is_worth_a_trial(spec, tight, expires_in=600.0)
    assert is_worth_a_trial(spec, make.capability(device="cuda"), expires_in=600.0)


@given(expires_in=st.floats(0.0, 1e4), speed=st.floats(1e6, 1e12))
def test_no_trial_is_expected_to_outlast_its_share_of_an_offer(
    make, expires_in: float, speed: float
) -> None:
    spec = make.spec()
    tight = make.capability(free_memory_bytes=1, flops_per_second=speed)
    if is_worth_a_trial(spec, tight, expires_in=expires_in):
        accumulated = 2 * step_flops(spec) / spec.train.accumulation
        assert START_SECONDS["cpu"] + accumulated / speed <= OFFER_SHARE * expires_in
    else:
        assert expires_in < 2 * START_SECONDS["cpu"] + 8 * step_flops(spec) / speed + 1e-6


@pytest.mark.timeout(300)
async def test_a_trial_says_what_a_step_takes_and_is_made_once(make, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8.0)
    spec = make.spec(parent="0" * 64).model_copy(update={"trains": "lora", "lora": lora})
    pilots = Pilots(tmp_path / "pilots.json", log=tmp_path / "trainer.log")
    assert pilots.known(pilot(spec)) is None
    found = await pilots.find(pilot(spec), seconds=250.0)
    assert isinstance(found, Fits)
    assert found.micro_batch == spec.train.micro_batch
    assert 50_000_000 < found.peak_memory_bytes < 2_000_000_000
    assert found.tokens_per_second > 0
    longer = make.spec(parent="0" * 64, num_steps=3, rng_seed=5).model_copy(
        update={"trains": "lora", "lora": lora}
    )
    assert await pilots.find(pilot(longer), seconds=0.0) == found
    assert pilots.known(pilot(spec, memory_bytes=10**9)) is None
    assert pilots.known(pilot(make.spec(ffn_width=48))) is None
    (tmp_path / "pilots.json").write_bytes(b"{torn")
    assert pilots.known(pilot(spec)) is None


async def test_a_trial_that_takes_too_long_says_nothing(make, tmp_path: Path) -> None:
    pilots = Pilots(tmp_path / "pilots.json", log=tmp_path / "trainer.log")
    assert await pilots.find(pilot(make.spec()), seconds=0.01) is None
