"""Several devices of one worker: which, and what each may use."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.capability import MAX_DEVICES
from protocol.messages import Offer
from shared.sizing import disk_bytes
from worker.capability import CapabilityError, Probed
from worker.device import Device
from worker.folder import WorkerFolder
from worker.gpus import ORDER, VISIBLE, every
from worker.measuring import measure_first
from worker.screen import TextScreen
from worker.settings import BadSetting, Cap, JoinSettings
from worker.sharing import environment_of, its_disk, its_memory, labels_of, parse_devices, parts_of
from worker.status import Board, WorkerStatus

URL = "http://127.0.0.1:1"
HERE = Path("anywhere")


def settings(*devices: str, **facts) -> JoinSettings:
    return JoinSettings(url=URL, folder=HERE, devices=devices, **facts)


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, indices: str) -> None:
    """A machine with these GPUs."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{indices}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv(VISIBLE, raising=False)


def test_one_device_is_what_it_was():
    alone = JoinSettings(url=URL, folder=HERE, device="cuda:1", num_threads=3)
    assert parts_of(alone, num_cores=8) == (alone,)
    assert parse_devices(None) == parse_devices([]) == ()
    assert parse_devices(["cuda:1"]) == ("cuda:1",)
    assert parse_devices(["abacus"]) == ("abacus",), "an only device is judged where it is measured"


def test_several_devices_are_taken_in_the_order_given():
    assert parse_devices(["cuda:1", "cpu", "cuda:0", "cpu"]) == ("cuda:1", "cpu", "cuda:0", "cpu")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["cpu", "abacus"], "device 'abacus': expected one of"),
        (["cuda", "cpu"], "say which GPU, by its number"),
        (["cuda:0", "cuda:0"], "--device cuda:0: given twice"),
        (["mps", "mps"], "--device mps: given twice"),
        (["all", "cpu"], "--device all with another"),
        (["cpu"] * (MAX_DEVICES + 1), f"{MAX_DEVICES + 1} devices, expected at most {MAX_DEVICES}"),
    ],
)
def test_devices_that_cannot_be_are_refused(texts, words):
    with pytest.raises(BadSetting, match=words):
        parse_devices(texts)


def test_all_is_every_gpu_that_is_visible(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, "0\\n1\\n2\\n")
    assert parse_devices(["all"]) == ("cuda:0", "cuda:1", "cuda:2")
    monkeypatch.setenv(VISIBLE, "2,0")
    assert parse_devices(["all"]) == ("cuda:0", "cuda:1")
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(BadSetting, match="no GPU is seen here"):
        parse_devices(["all"])
    assert every({"PATH": str(tmp_path / "nowhere")}) == ()


@given(
    names=st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), min_size=2, max_size=8),
    threads=st.integers(8, 64),
)
def test_threads_are_divided_and_none_is_lost(names, threads):
    parts = parts_of(settings(*names), num_cores=threads)
    assert [part.device for part in parts] == names
    shares = [part.num_threads for part in parts]
    assert sum(shares) == threads
    assert max(shares) - min(shares) <= 1
    assert all(part.devices == () for part in parts)


def test_caps_are_divided_among_those_that_they_concern():
    several = settings(
        "cpu", "cuda:0", "cpu", num_threads=6, memory_bytes=9_000, gpu_memory=Cap(share=0.5)
    )
    first, gpu, last = parts_of(several, num_cores=64)
    assert (first.num_threads, first.memory_bytes, first.gpu_memory) == (2, 4_500, None)
    assert first == last
    assert gpu.gpu_memory == Cap(share=0.5)
    with pytest.raises(BadSetting, match=r"--device cpu 3 times: .* there are 2"):
        parts_of(settings("cpu", "cpu", "cpu"), num_cores=2)
    with pytest.raises(BadSetting, match="--gpu-memory with --device cpu"):
        settings("cpu", "cpu", gpu_memory=Cap(share=0.5))


def test_each_gpu_is_the_only_one_that_its_trainer_sees():
    assert environment_of("cpu", {}) == {}
    assert environment_of("cuda:1", {}) == {**ORDER, VISIBLE: "1"}
    assert environment_of("cuda:1", {VISIBLE: "5,7"}) == {**ORDER, VISIBLE: "7"}
    with pytest.raises(CapabilityError, match="shows 1 here"):
        environment_of("cuda:1", {VISIBLE: "5"})


def test_devices_of_one_name_are_told_apart_by_a_number():
    assert labels_of(("cuda:0", "cpu", "cpu")) == ("cuda:0", "cpu 1", "cpu 2")


def test_the_host_s_memory_is_divided_among_cpus_and_what_trainers_hold_is_counted(
    make, monkeypatch
):
    monkeypatch.setattr("worker.sharing.host_memory", lambda: (8_000_000_000, 4_000_000_000))
    found = make.capability(free_memory_bytes=7)
    half = its_memory(found, cap=None, num_cpu=2).free_memory_bytes
    assert half == 2_000_000_000
    assert its_memory(found, cap=1_000, num_cpu=2).free_memory_bytes == 1_000
    assert its_memory(found, cap=None, num_cpu=1) == found
    gpu = make.capability(device="cuda", free_memory_bytes=7)
    assert its_memory(gpu, cap=None, num_cpu=2) == gpu
    waiting = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waiting, "worker.trainer"], stdin=subprocess.PIPE):
        assert its_memory(found, cap=None, num_cpu=2).free_memory_bytes > half


PIECE = st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.2))
"""A device, the share of its part that it takes, how much of that it writes, and what stays."""


@given(free=st.integers(0, 10**12), pieces=st.lists(PIECE, max_size=30))
def test_no_two_devices_are_told_of_the_same_gigabytes(make, free, pieces):
    """Whatever each takes of what it was told, all that was taken can still be written."""
    owed: dict[int, int] = {}
    written: dict[int, int] = {}
    for number, takes, writes, stays in pieces:
        if number in owed:
            del owed[number]
            free += int((1.0 - stays) * written[number])
        told = its_disk(
            make.capability(free_disk_bytes=10**12),
            free_bytes=free,
            owed_bytes=sum(owed.values()),
            num_idle=4 - len(owed),
        ).free_disk_bytes
        needs = int(takes * told)
        written[number] = int(writes * needs)
        owed[number] = needs - written[number]
        free -= written[number]
        assert sum(owed.values()) <= free


@given(free=st.integers(0, 10**12), owed=st.integers(0, 10**12), num_idle=st.integers(1, 8))
def test_idle_devices_that_ask_at_once_are_told_of_no_more_than_there_is(
    make, free, owed, num_idle
):
    one = its_disk(
        make.capability(free_disk_bytes=10**12),
        free_bytes=free,
        owed_bytes=owed,
        num_idle=num_idle,
    )
    assert num_idle * one.free_disk_bytes <= max(0, free - owed)


def test_before_anything_starts_a_device_is_told_of_its_part_of_the_disk(
    make, tmp_path, monkeypatch
):
    free = 900_000_000
    probed = Probed(make.capability(free_disk_bytes=free))
    monkeypatch.setattr("worker.measuring.capabilities.probe", lambda **_: probed)
    for devices, part in (
        ((), free),
        (("cpu", "cpu"), free // 2),
        (("cpu", "cpu", "mps"), free // 3),
    ):
        found = measure_first(settings(*devices, num_threads=3), tmp_path, on_offer=())
        assert found.capability.free_disk_bytes == part


def test_a_device_is_told_of_what_the_work_of_another_one_leaves(make, tmp_path, monkeypatch):
    free = 10 * disk_bytes(make.spec())
    monkeypatch.setattr("worker.device.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    folder = WorkerFolder(tmp_path / "anna")
    try:
        first, second = (
            Device(
                settings=JoinSettings(url=URL, folder=folder.root),
                folder=folder,
                board=Board(TextScreen(""), WorkerStatus()),
                capability=make.capability(),
                number=number,
            )
            for number in range(2)
        )
        measured = make.capability(free_disk_bytes=free)
        assert first.offered(measured).free_disk_bytes == free
        folder.num_devices = 2
        assert first.offered(measured).free_disk_bytes == free // 2
        offer = Offer(
            assignment="a" + "0" * 16,
            fencing=1,
            expires_in=20.0,
            spec=make.spec(),
            shard=make.blob("shard"),
            parent=None,
            resume=None,
            checkpoint_seconds=5.0,
            reason="",
        )
        folder.remember_offer(offer, 0)
        folder.work(offer.assignment).mkdir(parents=True)
        (folder.work(offer.assignment) / "checkpoint").write_bytes(b"written")
        left = free - disk_bytes(offer.spec) + len(b"written")
        assert second.offered(measured).free_disk_bytes == left
        assert first.offered(measured).free_disk_bytes == free // 2
    finally:
        folder.close()
