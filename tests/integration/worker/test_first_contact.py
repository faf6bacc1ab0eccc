"""What a volunteer is shown and asked before anything starts, by the real command."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.ledger import queries, tables
from shared.clock import now
from shared.identity import Identity
from worker.folder import WorkerFolder

pytestmark = pytest.mark.timeout(300)

PROGRAM = """\
import signal
import sys
# Tests that run in a shell's background ignore Ctrl-C, and so would their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
from protocol.capability import Capability
from worker import capability, main
given = Capability.model_validate_json(sys.argv.pop(1))
capability.probe = lambda **_: capability.Probed(given)
main.main()
"""
"""`hdee-worker` without its ten seconds of measuring."""


class Program:
    """`hdee-worker` with a given capability."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def words(self, *arguments: object, **lacking: int) -> list[str]:
        given = self.make.capability(**lacking).model_dump_json()
        return [sys.executable, "-c", PROGRAM, given, *map(str, arguments)]

    def __call__(self, *arguments: object, **lacking: int) -> subprocess.CompletedProcess[str]:
        """Its end, with nobody at its standard input."""
        return subprocess.run(
            self.words(*arguments, **lacking),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


class Terminal:
    """`hdee-worker` on a terminal of its own; `shown` is what it wrote there."""

    def __init__(self, words: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.shown = ""

    def until(self, words: str) -> None:
        """Reads until it has shown these words."""
        while words not in self.shown:
            self._read()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Reads to the end; its exit code."""
        while self._read():
            pass
        return self.process.wait(120)

    def interrupt(self) -> int:
        """Ctrl-C, again as long as nothing happens, as people press it; its exit code.

        Python 3.11 lets a first one lie when it comes after the question is shown and before the
        read for the answer has begun.
        """
        for _ in range(6):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
                return self.end()
        raise AssertionError(f"Ctrl-C did not end it, which shows: {self.shown[-2000:]}")

    def close(self) -> None:
        os.close(self._ours)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> bool:
        try:
            read = os.read(self._ours, 65_536)
        except OSError:
            # Linux says so when nobody has the other side open.
            read = b""
        self.shown += read.decode(errors="replace")
        return bool(read)


@pytest.fixture
def program(make: Any) -> Program:
    return Program(make)


@pytest.fixture
def terminal(program: Program) -> Any:
    opened: list[Terminal] = []

    def start(*arguments: object, **lacking: int) -> Terminal:
        opened.append(Terminal(program.words(*arguments, **lacking)))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def worker_of(folder: Path) -> str:
    return Identity.load(folder / "worker.key").peer_id


def is_registered(roles: Any, worker: str) -> bool:
    query = select(tables.presence.c.worker).where(tables.presence.c.worker == worker)
    with roles.ledger.read() as connection:
        return connection.execute(query).scalar_one_or_none() is not None


SHOWN = (
    "This is its fingerprint",
    'on the text "python": the seed, which the other models of the run start from',
    "(parameters; FFN 64), trained in 1,000,000 steps",
    "why you ",
    "time about ",
    "memory at most ",
    "of 10.00 GB that are free for it",
    "before it starts",
    "a checkpoint of ",
    "What leaves this machine:",
    "none of your files is read",
)


def plain(shown: str) -> str:
    """What is shown, as if the screen were wide enough for each of its sentences."""
    return " ".join(shown.split())


def test_a_volunteer_is_asked_once_and_nothing_is_leased_before_the_answer(
    roles: Any, terminal: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    flags = ("join", roles.url, "--folder", tmp_path / "anna", "--http-only")
    asked = terminal(*flags)
    asked.until("[y/N]")
    for words in (*SHOWN, worker_of(tmp_path / "anna")):
        assert words in plain(asked.shown)
    assert max(map(len, asked.shown.splitlines())) <= 80
    assert roles.entries(assignment) == []
    asked.type("\n")
    assert asked.end() == 0
    assert "nothing was started" in asked.shown
    assert not (tmp_path / "anna").exists(), "who says no keeps nothing of it"

    asked = terminal(*flags)
    asked.until("[y/N]")
    asked.type("y\n")
    tools.wait_for("it works", lambda: "acknowledge" in roles.entries(assignment))
    asked.process.terminate()
    assert asked.end() == 0, asked.shown[-3000:]

    again = terminal(*flags, "--for", "2s")
    assert again.end() == 0
    assert "[y/N]" not in again.shown
    assert "joined run tiny" in again.shown


def test_ctrl_c_at_the_question_ends_it_and_agrees_to_nothing(
    roles: Any, terminal: Any, tmp_path: Path
) -> None:
    roles.open_assignment()
    asked = terminal("join", roles.url, "--folder", tmp_path / "anna")
    asked.until("[y/N]")
    assert asked.interrupt() != 0
    assert "Traceback" not in asked.shown
    assert not (tmp_path / "anna" / "agreements.json").exists()


def test_without_a_terminal_it_wants_the_word_for_yes_and_calls_nobody(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    done = program("join", roles.url, "--folder", tmp_path / "anna")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "--dry-run" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "anna" / "coordinators.json").exists()


def test_yes_shows_what_would_run_and_is_remembered(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    roles.open_assignment()
    flags = ("join", roles.url, "--folder", tmp_path / "anna", "--http-only", "--for", "2s")
    first = program(*flags, "--yes")
    assert first.returncode == 0, first.stderr
    assert "This is its fingerprint" in first.stdout
    assert "you expect to stay 2 s" in plain(first.stdout), "the time that it is here for counts"
    again = program(*flags)
    assert again.returncode == 0, again.stderr
    assert "fingerprint" not in again.stdout


def test_a_dry_run_registers_shows_and_takes_nothing(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    done = program("join", roles.url, "--folder", tmp_path / "anna", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(words in plain(done.stdout) for words in SHOWN)
    assert "registered with the coordinator. No work\nwas taken" in done.stdout
    assert is_registered(roles, worker_of(tmp_path / "anna"))
    assert roles.entries(assignment) == []
    assert not (tmp_path / "anna" / "agreements.json").exists()


def test_can_join_says_yes_where_there_is_work(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    flags = ("can-join", roles.url, "--folder", tmp_path / "anna")
    done = program(*flags)
    assert (done.returncode, done.stdout) == (0, "yes: there is work for this machine now\n")
    done = program(*flags, "--format", "json")
    found = json.loads(done.stdout)
    assert (found["can_join"], found["preview"]["prospect"]) == (True, "now")
    assert found["worker"] == worker_of(tmp_path / "anna")
    assert roles.entries(assignment) == []


def test_can_join_names_what_a_machine_lacks_and_how_much(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    roles.open_assignment()
    flags = ("can-join", roles.url, "--folder", tmp_path / "anna")
    done = program(*flags, free_memory_bytes=1_000_000)
    assert done.returncode == 1
    first, lack = done.stdout.splitlines()
    assert first.startswith("no: ")
    assert "free memory, you have 1 MB" in lack
    done = program(*flags, "--format", "json", free_disk_bytes=1000)
    assert done.returncode == 1
    (lacking,) = json.loads(done.stdout)["preview"]["lacks"]
    assert (lacking["requirement"], lacking["held"]) == ("disk", 1000)


def test_can_join_has_an_exit_code_for_nobody_and_for_a_refusal(
    roles: Any, program: Program, free_ports: Any, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    nobody = program("can-join", f"http://127.0.0.1:{port}", "--folder", tmp_path / "anna")
    assert nobody.returncode == 3
    roles.open_assignment()
    assert program("can-join", roles.url, "--folder", tmp_path / "anna").returncode == 0
    with roles.ledger.begin() as connection:
        worker = worker_of(tmp_path / "anna")
        queries.treat_worker(connection, worker, "ban", reason="a test", now=now())
    banned = program("can-join", roles.url, "--folder", tmp_path / "anna")
    assert banned.returncode == 4
    assert "banned" in banned.stderr
    assert len(banned.stderr.strip().splitlines()) == 2, "what it did, and why it ended"


def test_a_folder_at_work_is_not_looked_around_in(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    running = WorkerFolder(tmp_path / "anna")
    try:
        done = program("can-join", roles.url, "--folder", tmp_path / "anna")
    finally:
        running.close()
    assert done.returncode == 1
    assert "another hdee-worker (process " in done.stderr


def test_a_cap_on_a_gpu_that_is_not_here_ends_it_before_anybody_is_told(
    roles: Any, program: Program, tmp_path: Path
) -> None:
    roles.open_assignment()
    flags = ("join", roles.url, "--folder", tmp_path / "anna", "--gpu-memory", "50%", "--yes")
    done = program(*flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("hdee-worker: --gpu-memory: ")
    assert "say --memory instead" in done.stderr
    assert not (tmp_path / "anna").exists()
