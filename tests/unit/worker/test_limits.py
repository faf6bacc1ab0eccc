"""Caps and rules as they are typed: amounts, shares, and what contradicts the machine or itself."""

import contextlib
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.limits import (
    Machine,
    parse_cap,
    parse_disk,
    parse_free_after,
    parse_memory,
    parse_niceness,
    parse_rules,
    parse_share,
    parse_threads,
)
from worker.manners.hours import parse_hours
from worker.manners.rules import Rules
from worker.settings import MIN_DISK_BYTES, BadSetting, Cap, JoinSettings

MACHINE = Machine(num_cores=8, memory_bytes=16 * 10**9)
URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "threads"), [("2", 2), ("50%", 4), ("1%", 1), ("100 %", 8), ("0", 0)]
)
def test_threads_are_a_number_or_a_share(text, threads):
    assert parse_threads(text, MACHINE) == threads


@pytest.mark.parametrize("text", ["", "two", "1.5", "150%", "0%", "%"])
def test_threads_that_are_none_are_refused_with_an_example(text):
    with pytest.raises(BadSetting, match=r"--threads .* share such as 50%"):
        parse_threads(text, MACHINE)


def test_memory_is_an_amount_or_a_share_of_what_is_built_in():
    assert parse_memory("2GB", MACHINE) == 2 * 10**9
    assert parse_memory("25%", MACHINE) == 4 * 10**9


def test_more_memory_than_there_is_is_refused_with_both_numbers():
    with pytest.raises(BadSetting, match=r"--memory '17GB': 17.00 GB, .* has 16.00 GB"):
        parse_memory("17GB", MACHINE)


def test_room_is_an_amount_or_a_share_of_the_disk_of_the_folder(tmp_path):
    total = psutil.disk_usage(str(tmp_path)).total
    assert parse_disk("20MB", tmp_path) == 20_000_000
    assert parse_disk("10%", tmp_path / "yet" / "to" / "come") == int(0.1 * total)


@pytest.mark.parametrize("text", ["", "0", "20", "much", "9MB", "-20GB", "9000TB"])
def test_room_that_is_too_little_or_too_much_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match=r"--disk .* such as "):
        parse_disk(text, Path("/"))


def test_memory_of_a_gpu_is_capped_in_its_own_right(make, tmp_path):
    settings = JoinSettings(url=URL, folder=tmp_path, memory_bytes=10**9, gpu_memory=Cap(share=0.5))
    gpu = make.capability().model_copy(
        update={
            "device": "cuda",
            "total_memory_bytes": 8 * 10**9,
            "free_memory_bytes": 7 * 10**9,
        }
    )
    assert settings.training_memory(gpu) == 4 * 10**9
    assert settings.offered(gpu).free_memory_bytes == 4 * 10**9
    cpu = gpu.model_copy(update={"device": "cpu"})
    assert settings.training_memory(cpu) == 10**9
    assert JoinSettings(url=URL, folder=tmp_path).offered(gpu) == gpu


def test_sizes_are_told_in_words(tmp_path):
    with pytest.raises(BadSetting, match=r"but this machine has \d+\.\d\d GB$"):
        parse_memory("900TB", Machine.this())
    with pytest.raises(BadSetting, match=r"at most the \d+(\.\d\d)? [MG]B of that disk$"):
        parse_disk("9000TB", tmp_path)


def test_limits_that_contradict_each_other_are_refused_with_both(tmp_path):
    with pytest.raises(BadSetting, match="--gpu-memory with --device cpu"):
        JoinSettings(url=URL, folder=tmp_path, device="cpu", gpu_memory=Cap(share=0.5))
    with pytest.raises(BadSetting, match=r"--activity-file .*/active without --only-when-idle"):
        JoinSettings(url=URL, folder=tmp_path, activity_file=tmp_path / "active")


def test_rules_are_read_from_their_flags():
    rules = parse_rules(
        only_when_idle="5m",
        hours=["22:00-07:00", "Sat 00:00-24:00"],
        on_battery=True,
        max_other_cpu="50%",
    )
    assert rules == Rules(
        idle_seconds=300.0,
        hours=(parse_hours("22:00-07:00"), parse_hours("Sat 00:00-24:00")),
        on_battery=True,
        max_other_cpu=0.5,
    )
    nothing = parse_rules(only_when_idle=None, hours=None, on_battery=False, max_other_cpu=None)
    assert nothing == Rules()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only_when_idle": "5"}, r"--only-when-idle '5': expected a time"),
        ({"only_when_idle": "9s"}, r"--only-when-idle '9s': .* from 10s to 24h"),
        ({"hours": ["22-7"]}, r"--hours '22-7': expected such as 22:00-07:00"),
        ({"max_other_cpu": "0.5"}, r"--max-other-cpu '0\.5': expected a share such as 50%"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_its_flag(changes, words):
    flags = {"only_when_idle": None, "hours": None, "on_battery": False, "max_other_cpu": None}
    with pytest.raises(BadSetting, match=words):
        parse_rules(**{**flags, **changes})


def test_pauses_and_niceness_have_bounds():
    assert parse_free_after("90s") == 90.0
    assert parse_niceness(0) == 0
    with pytest.raises(BadSetting, match="--free-memory-after 'never'"):
        parse_free_after("never")
    with pytest.raises(BadSetting, match="--nice 20: expected from 0"):
        parse_niceness(20)


@given(st.text("0123456789.%KMGTB -", max_size=20))
def test_any_text_is_a_limit_or_a_bad_setting(text):
    with contextlib.suppress(BadSetting):
        assert 0 < parse_share("--x", text) <= 1
    with contextlib.suppress(BadSetting):
        assert parse_cap("--x", text).of(10**12) >= 0
    with contextlib.suppress(BadSetting):
        assert isinstance(parse_threads(text, MACHINE), int)
    with contextlib.suppress(BadSetting):
        assert parse_disk(text, Path("/")) >= MIN_DISK_BYTES


def test_this_machine_has_cores_and_memory():
    machine = Machine.this()
    assert machine.num_cores >= 1
    assert machine.memory_bytes > 10**8
