"""What `hdee-worker check` finds of the machine: every failure with its fix."""

import pytest

from worker.machine_checks import (
    LOW_MEMORY_BYTES,
    MIN_MEMORY_BYTES,
    judge_compiler,
    judge_device,
    judge_memory,
    look_at_torch,
)

GPU = {"name": "H100", "free": 70 * 10**9, "total": 80 * 10**9}
CPU_ONLY = {"devices": ["cpu"], "cuda_build": None, "problem": ""}
CUDA = {"devices": ["cpu", "cuda"], "cuda_build": "12.8", "problem": "", "gpu": GPU}
OLD_DRIVER = {
    "devices": ["cpu"],
    "cuda_build": "12.8",
    "problem": "The NVIDIA driver on your system is too old (found version 11040)",
}


@pytest.mark.parametrize(
    ("found", "wanted", "has_nvidia", "state", "words"),
    [
        (CPU_ONLY, None, False, "ok", "the CPU"),
        (CPU_ONLY, "cpu", True, "ok", "the CPU"),
        (CPU_ONLY, "cuda", True, "failure", "no cuda here"),
        (CPU_ONLY, "tpu", False, "failure", "no tpu here"),
        (CPU_ONLY, None, True, "warning", "torch without CUDA"),
        (OLD_DRIVER, None, True, "warning", "too old (found version 11040)"),
        (OLD_DRIVER, "cuda", True, "failure", "too old (found version 11040)"),
        (CUDA, None, True, "ok", "H100, 70.00 GB of 80.00 GB free, CUDA 12.8"),
        (CUDA, "cpu", True, "ok", "the CPU"),
        ({"devices": ["cpu", "mps"]}, None, False, "ok", "(mps)"),
    ],
)
def test_a_device_is_there_or_it_is_said_why_not(found, wanted, has_nvidia, state, words):
    row = judge_device(found, wanted=wanted, has_nvidia=has_nvidia)
    assert row.state == state
    assert words in row.found
    assert bool(row.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("free", "cap", "state"),
    [
        (LOW_MEMORY_BYTES, None, "ok"),
        (LOW_MEMORY_BYTES - 1, None, "warning"),
        (MIN_MEMORY_BYTES - 1, None, "failure"),
        (8 * LOW_MEMORY_BYTES, MIN_MEMORY_BYTES - 1, "failure"),
    ],
)
def test_the_smaller_of_free_memory_and_cap_counts(free, cap, state):
    row = judge_memory(free, 16 * LOW_MEMORY_BYTES, cap=cap)
    assert (row.state, bool(row.fix)) == (state, state != "ok")


@pytest.mark.parametrize(
    ("path", "has_headers", "state"),
    [("/usr/bin/c++", True, "ok"), (None, True, "warning"), ("/usr/bin/c++", False, "warning")],
)
def test_a_machine_without_a_compiler_still_takes_part(path, has_headers, state):
    assert judge_compiler(path, has_headers=has_headers).state == state


async def test_the_child_tells_what_torch_can_use():
    found = await look_at_torch()
    assert "cpu" in found["devices"]
    assert found["torch"]


async def test_a_torch_that_cannot_be_loaded_is_told(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "libcudart.so.12" in (await look_at_torch())["error"]
