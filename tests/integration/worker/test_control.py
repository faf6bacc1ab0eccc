"""The verbs against a worker that runs, all as processes; and its screen on a terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.ledger import queries
from worker.control.client import ask
from worker.control.controls import AgentControls
from worker.control.messages import (
    PauseRequest,
    ResumeRequest,
    StatusRequest,
    StopRequest,
    WhyRequest,
)
from worker.status import WorkerStatus

pytestmark = pytest.mark.timeout(1200)
"""Trainers and workers take seconds to load torch, minutes where many others compute as well."""

LONG_SECONDS = 300.0

VERB = "from worker.main import main; main()"
CONTROL_C = b"\x03"
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def verb(root: Path, *words: str) -> tuple[int, str]:
    """A verb as it is typed: exit code and output."""
    done = subprocess.run(
        [sys.executable, "-c", VERB, *words, "--folder", str(root)],
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
    )
    return done.returncode, done.stdout + done.stderr


def status_of(root: Path) -> WorkerStatus:
    """As the verb asks for it, without a process for each look."""
    return ask(root, StatusRequest(), seconds=LONG_SECONDS).status


def told(root: Path, *words: str) -> Any:
    """What a verb says to programs; it must succeed."""
    code, out = verb(root, *words, "--format", "json")
    assert code == 0, out
    return json.loads(out)


async def test_a_worker_is_asked_paused_resumed_and_lets_go_when_its_owner_says_so(
    roles: Any, commands: Any, tools: Any, tmp_path: Path
) -> None:
    root = tmp_path / "anna"
    roles.open_assignment()
    anna = commands("anna", roles.url)
    await tools.until("it", lambda: (root / "control.sock").exists(), seconds=LONG_SECONDS)
    await tools.until(
        "a checkpoint", lambda: status_of(root).local_step is not None, seconds=LONG_SECONDS
    )

    seen = told(root, "status")
    status = seen["status"]
    assert (seen["running"], seen["pid"]) == (True, anna.process.pid)
    assert (status["state"], status["run"], status["url"]) == ("training", "tiny", roles.url)
    assert status["step"] > 0
    assert status["work"] == "seed for python, FFN 64"
    assert status["local_step"] > 0
    assert status["local_at"] is not None
    assert status["lease_until"] > status["since"]
    assert status["round_trip_seconds"] >= status["server_seconds"] > 0.0
    code, text = verb(root, "status")
    assert code == 0
    assert "tokens/s" in text
    why = told(root, "why")
    assert why["status"]["reason"]
    assert (why["account"]["name"], why["account"]["holds"]) == ("", status["assignment"])
    assert "seed for python" in verb(root, "why")[1]

    paused = told(root, "pause", "2s")
    assert paused["status"]["state"] == "paused"
    assert paused["message"].startswith("paused until 20")
    await tools.until(
        "it goes on by itself",
        lambda: status_of(root).state == "training",
        seconds=LONG_SECONDS,
    )
    assert told(root, "pause")["status"]["reason"] == "paused by its owner"
    assert "Nothing is trained: paused by its owner" in verb(root, "why")[1]
    resumed = told(root, "resume")
    assert resumed["message"] == "training goes on"
    assert resumed["status"]["state"] != "paused"
    assert "said: the owner's pause is over" in verb(root, "logs", "-n", "500")[1]

    last = roles.open_assignment(num_steps=1500)
    await tools.until(
        "the other work", lambda: status_of(root).num_steps == 1500, seconds=LONG_SECONDS
    )
    assert "once seed for python, FFN 64 is handed in" in verb(root, "finish")[1]
    assert told(root, "status")["status"]["finishing"]
    await tools.until("it ended", lambda: anna.process.poll() is not None, seconds=LONG_SECONDS)
    assert anna.process.returncode == 0, anna.said
    assert roles.state(last) in ("submitted", "verifying", "accepted")
    code, text = verb(root, "status")
    assert code == 1
    assert f"no hdee-worker runs from {root}" in text
    assert not (root / "control.sock").exists()


async def test_the_agent_itself_pauses_accounts_for_itself_and_stops(
    roles: Any, volunteers: Any, tools: Any
) -> None:
    assignment = roles.open_assignment()
    anna = volunteers("anna")
    controls = AgentControls(anna.agent, end=lambda: None)
    early = await controls.answer(WhyRequest())
    assert early.account is None
    assert early.why_not
    await controls.answer(PauseRequest())
    await tools.until(
        "it waits",
        lambda: anna.agent.board.status.state == "paused",
        seconds=LONG_SECONDS,
    )
    assert roles.row(assignment).standing.fencing == 0, "a paused worker asks for no work"
    await controls.answer(ResumeRequest())
    await tools.until("training", lambda: anna.said.step > 0, seconds=LONG_SECONDS)
    answer = await controls.answer(StopRequest())
    assert answer.status.state == "leaving"
    assert await anna.stop() == 0
    assert "release:stopped" in roles.entries(assignment)


class Terminal:
    """`hdee-worker join` on a terminal of its own."""

    def __init__(self, root: Path, url: str, capability: Any, program: str) -> None:
        self.shown = ""
        self.code: int | None = None
        words = [
            *(sys.executable, "-c", program, capability.model_dump_json()),
            *("join", url, "--yes", "--folder", str(root), "--threads", "1"),
            *("--listen", "/ip4/127.0.0.1/tcp/0", "--name", "anna"),
        ]
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, words, {**os.environ, "TERM": "xterm", "NO_COLOR": "1"})
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.set_blocking(self.file, False)

    def text(self) -> str:
        """All that it ever showed, without the codes that move and style."""
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self.file, 65536):
                self.shown += part.decode(errors="replace")
        return CODES.sub("", self.shown)

    def type(self, keys: bytes) -> None:
        os.write(self.file, keys)

    def ended(self) -> bool:
        self.text()
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def close(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminals(tmp_path: Path, roles: Any, make: Any, tools: Any) -> Iterator[Any]:
    started: list[Terminal] = []

    def start(name: str) -> Terminal:
        program = tools.given_capability
        started.append(Terminal(tmp_path / name, roles.url, make.capability(), program))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


async def test_a_terminal_shows_the_screen_and_ctrl_c_leaves_twice_at_once_and_once_in_good_order(
    roles: Any, terminals: Any, tools: Any, tmp_path: Path
) -> None:
    root = tmp_path / "anna"
    assignment = roles.open_assignment()
    first = terminals("anna")
    await tools.until("the screen", lambda: "tokens/s" in first.text(), seconds=LONG_SECONDS)
    await tools.until("a checkpoint", lambda: "here at step" in first.text(), seconds=LONG_SECONDS)
    for words in ("anna · tiny", "seed for python, FFN 64", "joined run tiny", "Ctrl-C: save"):
        assert words in first.text()
    assert re.search(r"loss +\d\.\d{3} [▁-█]+", first.text())
    [trainer] = tools.trainers(tmp_path)
    os.kill(trainer, signal.SIGSTOP)
    first.type(CONTROL_C)
    await tools.until("it stops", lambda: "stopping: finishing" in first.text())
    first.type(CONTROL_C)
    await tools.until("it ended", first.ended, seconds=LONG_SECONDS)
    assert first.code == 130
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, LONG_SECONDS)
    await tools.until("no trainer stays", lambda: tools.trainers(tmp_path) == [])
    assert first.shown.rindex("\x1b[?25h") > first.shown.rindex("\x1b[?25l"), "the cursor is back"
    code, out = verb(root, "status", "--format", "json")
    assert (code, json.loads(out)["remembered"]["assignment"]) == (1, assignment)

    second = terminals("anna")
    await tools.until("it goes on", lambda: "going on with" in second.text(), seconds=LONG_SECONDS)
    await tools.until("it trains", lambda: "training (for" in second.text(), seconds=LONG_SECONDS)
    second.type(CONTROL_C)
    await tools.until("it ended", second.ended, seconds=LONG_SECONDS)
    assert second.code == 0, second.text()
    assert "stopping: finishing the step and writing a checkpoint" in second.text()
    assert "Traceback" not in first.text() + second.text()
    assert "release:stopped" in roles.entries(assignment)
    assert tools.trainers(tmp_path) == []
