"""A child that watches its parent, as real processes: parent, child, and a kill."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

CHILD = """
import os, threading
from shared.orphan import watch_parent
def gone():
    print("gone", flush=True)
    os._exit(7)
watch_parent(gone)
print("watching", flush=True)
threading.Event().wait()
"""

PARENT = f"""
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
threading.Event().wait()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        yield process
        process.kill()


def test_a_child_acts_once_the_pipe_is_closed(child: subprocess.Popen[str]) -> None:
    child.stdin.close()
    child.stdin = None
    assert child.stdout.read() == "gone\n"
    assert child.wait(10) == 7


def test_what_the_parent_writes_is_no_sign_of_its_death(child: subprocess.Popen[str]) -> None:
    child.stdin.write("x" * 10_000 + "\n")
    child.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)


def test_a_killed_parent_takes_its_child_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"watching\n"
        parent.kill()
        # Both write to this pipe: it ends when the child has ended as well.
        assert parent.stdout.read() == b"gone\n"
