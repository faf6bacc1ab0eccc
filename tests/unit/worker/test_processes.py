"""Orphans are ended by the next life; a process that is not the noted one is left alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from worker.processes import NAME, Born, Family, ProcessNotes, born

AGENT = """\
import subprocess, sys
from pathlib import Path
from worker.processes import ProcessNotes
sleep = [sys.executable, "-c", "input()"]
none = subprocess.DEVNULL
child = subprocess.Popen(sleep, stdin=subprocess.PIPE, stdout=none, stderr=none)
ProcessNotes(Path(sys.argv[1])).note_children()
print(child.pid, flush=True)
input()
"""


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[psutil.Process]:
    """A suspended child of a process that noted it and was killed."""
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    pid = int(agent.stdout.readline())
    child = psutil.Process(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while child.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
        assert ProcessNotes(tmp_path).reap() == (), "its agent lives"
        assert child.is_running()
        agent.kill()
        agent.communicate()
        yield child
    finally:
        agent.kill()
        agent.communicate()
        if child.is_running():
            child.kill()


def test_a_suspended_child_of_a_dead_agent_is_ended(tmp_path, orphan):
    assert orphan.status() == psutil.STATUS_STOPPED
    assert ProcessNotes(tmp_path).reap() == (orphan.pid,)
    assert born(orphan.pid) is None
    assert not (tmp_path / NAME).exists()
    assert ProcessNotes(tmp_path).reap() == ()


def test_a_process_that_got_an_orphans_id_is_left_alone(tmp_path, orphan):
    path = tmp_path / NAME
    family = Family.model_validate_json(path.read_bytes())
    other = Born(pid=orphan.pid, birth="some earlier boot 1234")
    path.write_text(family.model_copy(update={"children": (other,)}).model_dump_json())
    assert ProcessNotes(tmp_path).reap() == ()
    assert orphan.is_running()


@pytest.mark.parametrize("text", ["", "{", '{"agent": {"pid": 1}}', "[]"])
def test_notes_that_cannot_be_read_end_nobody(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    assert ProcessNotes(tmp_path).reap() == ()


def test_a_process_is_known_by_id_and_birth():
    mine = born(os.getpid())
    assert mine == born(os.getpid())
    assert mine is not None
    assert mine.pid == os.getpid()
    parent = born(os.getppid())
    assert parent != mine
    assert born(2**22 + 1) is None


def test_a_dead_child_that_nobody_collected_is_no_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert born(child.pid) is None
    child.wait()
