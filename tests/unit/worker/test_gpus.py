"""Which of several GPUs is meant, and how much memory it has left."""

from pathlib import Path

import pytest

from worker.gpus import VISIBLE, NoSuchDevice, free_bytes, parse_device, visible


def test_a_gpu_may_be_named_by_its_number() -> None:
    assert parse_device("cuda:1") == ("cuda", 1)
    assert parse_device("cuda") == ("cuda", None)
    assert parse_device("cpu") == ("cpu", None)


@pytest.mark.parametrize("text", ["", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "mps:1", "tpu"])
def test_what_is_no_device_is_told_what_there_could_be(text: str) -> None:
    with pytest.raises(NoSuchDevice, match="cpu, cuda, mps, or a GPU by its number"):
        parse_device(text)


def test_numbers_count_those_that_are_visible() -> None:
    assert visible(2, {}) == "2"
    assert visible(1, {VISIBLE: "3,GPU-ab, 5"}) == "GPU-ab"
    with pytest.raises(NoSuchDevice, match="shows 1 here"):
        visible(1, {VISIBLE: "3"})


def test_nvidia_smi_is_asked_about_the_gpu_that_is_visible(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --id=3 ] && echo 1024 || echo "No devices were found"\n')
    tool.chmod(0o755)
    path = {"PATH": str(tmp_path)}
    assert free_bytes({**path, VISIBLE: "3,1"}) == 1 << 30
    assert free_bytes(path) is None
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert free_bytes(path) is None
    assert free_bytes({"PATH": str(tmp_path / "nowhere")}) is None
