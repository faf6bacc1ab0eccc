"""What a machine says of itself: measured by the real child, within its owner's caps."""

from pathlib import Path

import psutil
import pytest
import torch

from worker.calibrate import UnknownDevice, choose_device
from worker.capability import Calibration, CapabilityError, probe, refresh
from worker.timing import fixed_step, in_words, spec_of


def test_a_probe_measures_this_machine_within_its_caps(tmp_path: Path) -> None:
    cap = 300_000_000
    probed = probe(
        device="cpu", num_threads=1, memory_bytes=cap, folder=tmp_path / "not" / "there" / "yet"
    )
    found = probed.capability
    assert probed.steps == (in_words(spec_of(fixed_step("cpu"))),)
    assert found.device == "cpu"
    assert found.device_name
    assert found.num_threads == 1
    assert 1e8 < found.flops_per_second < 1e13
    assert found.free_memory_bytes == cap < found.total_memory_bytes
    assert found.total_memory_bytes <= psutil.virtual_memory().total
    assert found.free_disk_bytes > 0
    assert not found.bfloat16
    assert not (tmp_path / "not").exists()
    later = refresh(found, memory_bytes=None, folder=tmp_path)
    assert later.flops_per_second == found.flops_per_second
    assert cap < later.free_memory_bytes <= found.total_memory_bytes


def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="device 'abacus': expected one of cpu"):
        probe(device="abacus", num_threads=1, memory_bytes=None, folder=tmp_path)


@pytest.mark.parametrize("num_threads", [0, -1, 100_000])
def test_threads_that_the_machine_does_not_have_are_refused(
    tmp_path: Path, num_threads: int
) -> None:
    with pytest.raises(CapabilityError, match=f"--threads {num_threads}"):
        probe(device="cpu", num_threads=num_threads, memory_bytes=None, folder=tmp_path)


@pytest.mark.parametrize("memory_bytes", [0, 2**60])
def test_a_memory_cap_outside_the_machine_is_refused(
    make, tmp_path: Path, memory_bytes: int
) -> None:
    with pytest.raises(CapabilityError, match=f"memory_bytes {memory_bytes}: expected from 1"):
        refresh(make.capability(), memory_bytes=memory_bytes, folder=tmp_path)


def test_a_gpus_memory_is_not_mistaken_for_the_systems(make, tmp_path: Path) -> None:
    gpu = make.capability(device="cuda", free_memory_bytes=3_999_999_999)
    assert refresh(gpu, memory_bytes=None, folder=tmp_path).free_memory_bytes == 3_999_999_999
    assert refresh(gpu, memory_bytes=1_000, folder=tmp_path).free_memory_bytes == 1_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_gpu_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="'cuda:7': this machine has cpu; leave out --device"):
        probe(device="cuda:7", num_threads=1, memory_bytes=None, folder=tmp_path)


def test_auto_takes_a_device_that_there_is() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == choose_device(choose_device("auto"))
    with pytest.raises(UnknownDevice, match="device 'abacus': this machine has"):
        choose_device("abacus")


def test_a_probe_measures_with_the_steps_on_offer_that_fit_its_caps(make, tmp_path: Path) -> None:
    small, large = make.spec().step_shape, make.spec(ffn_width=10**6).step_shape
    probed = probe(
        device="cpu",
        num_threads=1,
        memory_bytes=600_000_000,
        folder=tmp_path,
        calibration=Calibration(on_offer=(small, large)),
    )
    assert probed.steps == (in_words(make.spec()),)
    assert probed.capability.flops_per_second > 1e6


def test_steps_on_offer_that_end_the_measuring_child_keep_no_machine_from_joining(
    make, tmp_path: Path
) -> None:
    shape = make.spec().shape.model_copy(update={"vocab_size": 2})
    deadly = make.spec().step_shape.model_copy(update={"shape": shape})
    probed = probe(
        device="cpu",
        num_threads=1,
        memory_bytes=None,
        folder=tmp_path,
        calibration=Calibration(on_offer=(deadly,)),
    )
    assert probed.steps == (in_words(spec_of(fixed_step("cpu"))),)


def test_a_gpu_is_measured_with_larger_kernels_than_a_cpu() -> None:
    assert fixed_step("cuda").shape.hidden_size > fixed_step("cpu").shape.hidden_size
