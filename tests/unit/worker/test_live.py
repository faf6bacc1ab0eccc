"""The screen on a terminal: drawn by itself, gone with the terminal, and never in the way."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from worker.live import LiveScreen, is_possible
from worker.status import Board, WorkerStatus


class Closed(io.StringIO):
    """A terminal whose window was closed."""

    def write(self, text: str) -> int:
        del text
        raise OSError(5, "Input/output error")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def board():
    return Board(LiveScreen(), WorkerStatus(name="anna", state="waiting", reason="no work yet"))


def test_the_board_is_drawn_while_it_lasts_and_its_last_state_stays(board):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with LiveScreen().showing(board, console=console):
        board.say("joined run tiny")
        board.update(state="leaving", reason="asked to stop")
    text = out.getvalue()
    assert "no work yet" in text
    last = text.rsplit("anna", 1)[1]
    assert "asked to stop" in last
    assert "joined run tiny" in last
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"


def test_a_terminal_that_is_gone_ends_the_drawing_and_nothing_else(board):
    console = Console(file=Closed(), force_terminal=True, width=80)
    with LiveScreen().showing(board, console=console):
        board.say("still here")
    assert board.said[-1][1] == "still here"


@pytest.mark.parametrize(
    ("out", "kind", "possible"),
    [
        (Terminal(), "xterm", True),
        (Terminal(), "dumb", False),
        (Terminal(), "", False),
        (io.StringIO(), "xterm", False),
    ],
)
def test_only_a_terminal_that_can_redraw_gets_the_screen(monkeypatch, out, kind, possible):
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", kind)
    assert is_possible() is possible


ON_A_TERMINAL = """\
from worker.live import LiveScreen, is_possible
from worker.status import Board, WorkerStatus
assert is_possible()
screen = LiveScreen()
status = WorkerStatus(
    name="anna", state="training", assignment="a0123456789abcdef", work="expert for python",
    step=34, num_steps=100, reason="in time, " * 16, lease_until=1e9, transfer="x" * 90,
)
board = Board(screen, status)
with screen.showing(board):
    for number in range(9):
        board.say(f"line {number} " + "of many words " * 9)
"""
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LINE_ABOVE = "\x1b[1A\x1b[2K"


def test_a_small_terminal_is_filled_and_never_scrolled():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    words = [sys.executable, "-c", ON_A_TERMINAL]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while read := os.read(ours, 65_536):
            shown += read
    except OSError:
        # Linux says so when nobody has the other side open.
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    text = shown.decode()
    assert max(map(len, CODES.sub("", text).splitlines())) <= 40
    redrawn = max(len(part) for part in re.findall(f"(?:{re.escape(LINE_ABOVE)})+", text))
    assert redrawn // len(LINE_ABOVE) < 24
    assert "34/100" in text.rsplit("anna", 1)[1]
