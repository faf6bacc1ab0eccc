"""The trainer's process seen from the agent: its lines, and how it is ended."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shared.shards import write_shard
from shared.training import runner
from shared.training.assignment import TrainerAssignment
from shared.training.runner import TrainerProcess, died, parse_event


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"a library says hello\n", b"{}\n", b'{"event": 3}\n', b"[1]\n", b"\xff\n"]
)
def test_what_is_no_event_is_passed_over(line: bytes) -> None:
    assert parse_event(line) is None


def test_an_event_is_a_json_object_that_names_its_kind() -> None:
    assert parse_event(b'{"event": "stopped", "step": 3}\n') == {"event": "stopped", "step": 3}


@pytest.fixture
def assignment(tmp_path: Path, make: Any) -> TrainerAssignment:
    tokens = np.concatenate([[1], np.random.default_rng(0).integers(3, 256, 300)])
    write_shard(tmp_path / "shard", [(tokens, 300)] * 4, vocab_size=256)
    return TrainerAssignment(
        spec=make.spec(num_steps=1_000_000),
        shard=str(tmp_path / "shard"),
        parent=None,
        parent_shape=None,
        resume=None,
        folder=str(tmp_path / "work"),
        device="cpu",
        num_threads=1,
        checkpoint_seconds=1000.0,
    )


async def test_a_trainer_that_does_not_stop_when_asked_is_killed(
    assignment: TrainerAssignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.3)
    events = []
    async with TrainerProcess(assignment, log=tmp_path / "log") as child:
        async for event in child.events():
            events.append(event)
            if event["event"] == "started":
                os.kill(child.pid, signal.SIGSTOP)
                await child.stop()
        assert not psutil.pid_exists(child.pid)
    assert events[-1]["event"] == "failed"
    assert "exit code -9" in events[-1]["message"]


async def test_leaving_the_context_ends_and_reaps_the_trainer(
    assignment: TrainerAssignment, tmp_path: Path
) -> None:
    async with TrainerProcess(assignment, log=tmp_path / "log") as child:
        pid = child.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


async def test_a_trainer_that_is_done_has_exited_when_its_events_end(
    assignment: TrainerAssignment, tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short = assignment.model_copy(update={"spec": make.spec(num_steps=2)})
    async with TrainerProcess(short, log=tmp_path / "log") as child:
        events = [event["event"] async for event in child.events()]
        assert not psutil.pid_exists(child.pid)
    assert events[-1] == "finished", (tmp_path / "log").read_text()
    assert not [one for one in caplog.records if "child" in one.message]


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("libgomp: Out of memory allocating 64 bytes", 1, "out_of_memory"),
        ("libgomp: Out of memory allocating 64 bytes", 3, "trainer_failed"),
        ("ValueError: what():  std::bad_alloc", 1, "trainer_failed"),
    ],
)
async def test_a_child_that_a_library_ends_for_want_of_memory_is_told_as_such(
    tmp_path: Path, words: str, exit_code: int, code: str
) -> None:
    log = tmp_path / "trainer.log"
    program = f"import sys; print({words!r}, file=sys.stderr); sys.exit({exit_code})"
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=file)
    event = await died(child, log)
    assert (event["code"], event["exit_code"]) == (code, exit_code)
