"""What is said while a run is trained here: on a terminal one line moves, into a pipe none does."""

import io

import pytest

from coordinator.local.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_drawn_over_and_never_wraps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    screen = Screen(out)
    screen.live("step 1 \x1b[2J" + "x" * 100)
    screen.live("too soon to be read")
    screen.say("wrote a file")
    screen.rest()
    assert out.getvalue() == "\r\x1b[Kstep 1 ?[2Jxxxxxxxx\r\x1b[Kwrote a file\n"


def test_the_moving_line_is_ended_before_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    screen = Screen(out)
    screen.live("step 1")
    screen.rest()
    screen.rest()
    assert out.getvalue().endswith("step 1\n")


def test_into_a_pipe_lines_are_whole_and_few() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for step in range(100):
        screen.live(f"step {step}")
    assert out.getvalue() == "step 0\n"
