"""What is seen of the owner, of the battery and of other programs, and what is missing."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.manners.activity import (
    TOOL_SECONDS,
    ActivityFile,
    InputDevices,
    Terminals,
    Tool,
    read_ioreg,
    read_logind,
    read_xprintidle,
)
from worker.manners.rules import Facts, Rules
from worker.manners.senses import (
    BATTERY_SECONDS,
    CPU_SECONDS,
    Battery,
    OtherCpu,
    Senses,
    share_of_others,
)
from worker.manners.watch import Manners
from worker.observing import follow, missing_senses
from worker.screen import TextScreen
from worker.status import Board, WorkerStatus

DESKTOP = """\
Type=wayland
Class=user
IdleHint={hint}
IdleSinceHint=1700000000000000

Type=tty
Class=user
IdleHint=no
IdleSinceHint=0

Type=x11
Class=greeter
IdleHint=no
IdleSinceHint=0
"""


def test_touching_the_activity_file_is_activity(tmp_path):
    file = tmp_path / "active"
    source = ActivityFile(file)
    assert source.last_seen(5000.0) is None
    file.touch()
    os.utime(file, (1.0, 4321.0))
    assert source.last_seen(5000.0) == 4321.0


def test_typing_in_a_terminal_is_activity_and_writing_to_it_is_none(tmp_path):
    for name, read_at in {"0": 1000.0, "1": 2000.0}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (read_at, 9000.0))
    terminals = Terminals([f"{tmp_path}/[0-9]*"])
    assert terminals.missing == ""
    assert terminals.last_seen(9999.0) == 2000.0


def test_a_real_terminal_tells_when_somebody_typed():
    ours, terminal = os.openpty()
    try:
        before = os.stat(os.ttyname(terminal)).st_atime
        os.write(ours, b"hello\n")
        assert os.read(terminal, 100) == b"hello\n"
        seen = Terminals().last_seen(time.monotonic())
        assert seen is not None
        assert seen >= before
    finally:
        os.close(ours)
        os.close(terminal)


def test_where_there_are_no_terminals_that_is_said(tmp_path):
    assert Terminals([f"{tmp_path}/none/*"]).missing == "there are no terminals in /dev"


def test_whatever_an_input_device_says_is_activity(tmp_path):
    os.mkfifo(tmp_path / "event0")
    devices = InputDevices(f"{tmp_path}/event*")
    assert devices.missing == ""
    assert devices.last_seen(10.0) is None
    with (tmp_path / "event0").open("wb", buffering=0) as writer:
        assert devices.last_seen(20.0) is None
        writer.write(b"key")
        assert devices.last_seen(30.0) == 30.0
        assert devices.last_seen(40.0) == 30.0
    devices.close()


def test_input_devices_that_may_not_be_read_are_named(tmp_path):
    assert InputDevices(f"{tmp_path}/event*").missing == f"none of {tmp_path}/event* can be read"


@pytest.mark.parametrize(("hint", "expected"), [("yes", 1_700_000_000.0), ("no", 1_800_000_000.0)])
def test_logind_tells_of_desktops_alone(hint, expected):
    assert read_logind(DESKTOP.format(hint=hint), 1_800_000_000.0) == expected


def test_logind_without_a_desktop_tells_nothing():
    assert read_logind("Type=tty\nIdleHint=no\nIdleSinceHint=0\n", 1.0) is None


def test_idle_times_of_desktops_are_read():
    assert read_xprintidle("1500\n", 100.0) == 98.5
    assert read_ioreg('    | |   "HIDIdleTime" = 2500000000\n', 100.0) == 97.5


@given(st.text(), st.floats(0, 2e9))
def test_whatever_a_tool_prints_is_a_time_or_nothing(output, now):
    for read in (read_logind, read_xprintidle, read_ioreg):
        assert isinstance(read(output, now), float | None)


def test_a_program_is_asked_seldom_and_its_failure_tells_nothing(tmp_path):
    count = tmp_path / "count"
    script = f"open({str(count)!r}, 'a').write('x'); print(1000)"
    tool = Tool("x", lambda: [sys.executable, "-c", script], read_xprintidle)
    assert tool.last_seen(10.0) == 9.0
    assert tool.last_seen(10.0 + TOOL_SECONDS - 0.1) == 9.0
    assert count.read_text() == "x"
    assert tool.last_seen(10.0 + TOOL_SECONDS) == 9.0 + TOOL_SECONDS
    assert tool.last_seen(0.0) == -1.0
    assert Tool("x", lambda: ["false"], read_xprintidle).last_seen(10.0) is None
    assert Tool("x", lambda: [str(tmp_path / "none")], read_xprintidle).last_seen(1.0) is None


def test_nothing_is_looked_at_that_no_rule_asks_for(tmp_path):
    assert Senses(Rules(on_battery=True), now=0.0).described() == ()
    (battery,) = Senses(Rules(), now=0.0).described()
    assert battery.name == "battery"


def test_the_activity_file_is_in_place_of_all_else(tmp_path):
    file = tmp_path / "active"
    rules = Rules(idle_seconds=60, on_battery=True)
    senses = Senses(rules, activity_file=file, now=1000.0)
    (sense,) = senses.described()
    assert (sense.name, sense.missing) == (f"file {file}", "")
    assert senses.look(1010.0).idle_seconds == 10.0
    file.touch()
    os.utime(file, (1.0, 1015.0))
    assert senses.look(1020.0).idle_seconds == 5.0


def test_a_source_that_is_missing_is_named_with_its_reason():
    senses = Senses(Rules(idle_seconds=60), now=1000.0)
    named = {sense.name: sense.missing for sense in senses.described()}
    assert "terminals" in named
    assert "battery" in named
    if sys.platform.startswith("linux"):
        assert {"logind", "X11", "input devices"} <= named.keys()
    assert all(isinstance(reason, str) for reason in named.values())


def test_a_battery_that_discharges_is_seen_within_seconds(monkeypatch):
    plugged = [True]

    def read():
        return SimpleNamespace(power_plugged=plugged[0])

    monkeypatch.setattr(psutil, "sensors_battery", read, raising=False)
    battery = Battery()
    assert battery.look(100.0) is False
    plugged[0] = False
    assert battery.look(100.0 + BATTERY_SECONDS) is True


def test_a_computer_without_a_battery_is_not_on_battery(monkeypatch):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    battery = Battery()
    assert battery.look(1.0) is None
    assert battery.missing == "this computer has none that is seen"


def test_the_share_of_others_is_what_we_did_not_spend():
    assert share_of_others((100, 50, 20), (110, 57, 22)) == 0.5
    assert share_of_others((100, 50, 20), (100, 50, 20)) is None


@given(st.tuples(*[st.floats(0, 1e9)] * 6))
def test_the_share_of_others_is_a_share(numbers):
    share = share_of_others(numbers[:3], numbers[3:])
    assert share is None or 0 <= share <= 1


def test_what_we_compute_ourselves_is_not_what_others_use():
    cpu = OtherCpu()
    assert cpu.look(0.0) is None
    until = time.process_time() + 0.3
    while time.process_time() < until:
        sum(range(1000))
    before = cpu._before
    cpu.look(CPU_SECONDS)
    assert cpu._before[2] - before[2] >= 0.25


async def test_a_verdict_follows_the_activity_file_and_the_owners_word(tmp_path):
    file = tmp_path / "active"
    file.touch()
    os.utime(file, (0, 950.0))
    at = [1000.0]
    rules = Rules(idle_seconds=60)
    senses = Senses(rules, activity_file=file, now=0.0)
    manners = Manners(rules, senses=senses, clock=lambda: at[0])
    verdict = await manners.look()
    assert (verdict.may_train, verdict.until) == (False, 1010.0)
    at[0] = 1010.0
    assert (await manners.look()).may_train
    watching = asyncio.create_task(manners.watch())
    try:
        manners.pause(5)
        verdict = await asyncio.wait_for(manners.changed(manners.verdict), 60)
        assert (verdict.reason, verdict.until) == ("paused by its owner", 1015.0)
        manners.resume()
        await asyncio.wait_for(manners.until_allowed(), 60)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


class Broken:
    """A sense of a machine that nobody thought of."""

    name, missing = "seventh sense", ""

    def __init__(self) -> None:
        self.works = False

    def last_seen(self, now: float) -> float | None:
        return self.look(now)

    def look(self, now: float) -> float:
        if not self.works:
            raise RuntimeError("no such bus")
        return now - 50.0


async def test_a_sense_that_raises_is_unknown_said_once_and_stops_no_watching(monkeypatch, caplog):
    broken, at = Broken(), [1000.0]
    monkeypatch.setattr("worker.manners.senses.sources", lambda _: [broken])
    rules = Rules(idle_seconds=30.0, max_other_cpu=0.5)
    senses = Senses(rules, now=900.0)
    senses._battery = senses._cpu = broken
    manners = Manners(rules, senses=senses, clock=lambda: at[0])
    for _ in range(3):
        verdict = await manners.look()
    assert "nothing here tells whether you use this computer" in verdict.reason
    assert manners.facts == Facts()
    assert len([one for one in caplog.records if "seventh sense" in one.message]) == 1
    assert len(caplog.records) == 3, "each of the three senses once"
    board = Board(TextScreen(""), WorkerStatus())
    following = asyncio.create_task(follow(board, manners))
    await asyncio.sleep(0)
    shown = dict(words.split(" (", 1) for words in board.status.missing_senses)
    assert shown["seventh sense"] == "it failed: RuntimeError: no such bus)"
    following.cancel()

    broken.works = True
    verdict = await manners.look()
    assert manners.facts.idle_seconds == 50.0
    assert "seventh sense" not in " ".join(missing_senses(manners))
    manners.pause()
    assert (await manners.look()).reason == "paused by its owner"


def test_tools_are_named_even_where_they_are_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DISPLAY", raising=False)
    senses = Senses(Rules(idle_seconds=60), now=0.0)
    named = {sense.name: sense.missing for sense in senses.described()}
    if sys.platform.startswith("linux"):
        assert named["X11"] == "DISPLAY is not set"
        assert Path("/run/systemd/sessions").is_dir() or named["logind"] != ""
