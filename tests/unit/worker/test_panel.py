"""The live screen as text: everything that a volunteer asks for, on any terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from worker.panel import BLOCKS, MAX_SAID, credit_words, render, rows, sparkline
from worker.status import WorkerStatus

NOW = 1_700_000_000.0

TRAINING = WorkerStatus(
    state="training",
    reason="you finish it in time",
    since=NOW - 65,
    worker="12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
    name="anna",
    run="demo",
    device_name="AMD EPYC",
    assignment="a0123456789abcdef",
    work="expert for python, FFN 640",
    step=340,
    num_steps=1000,
    tokens_per_second=5120.4,
    eta_seconds=83.0,
    loss=4.5123,
    losses=(9.0, 7.0, 5.0, 4.5123),
    durable_step=300,
    durable_at=NOW - 40,
    local_step=335,
    local_at=NOW - 5,
    transfer="sending 3f2a: 12.0 MB",
    lease_until=NOW + 26,
    round_trip_seconds=0.0351,
    server_seconds=0.004,
    accepted=3,
    credit=1.23e15,
)
SAID = [(NOW - number, f"line {number}") for number in range(9, 0, -1)]


def drawn(status: WorkerStatus, said=(), *, width: int = 80, height: int = 40, **terminal) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, highlight=False, **terminal)
    console.print(render(status, said, NOW))
    return out.getvalue()


def test_the_screen_shows_the_work_its_progress_what_is_saved_and_what_it_earned():
    text = drawn(TRAINING, SAID)
    for words in (
        "anna · demo · AMD EPYC",
        "training (for 1:05)",
        "you finish it in time",
        "expert for python, FFN 640 [a0123456789abcdef]",
        "████░░░░░░░░ 340/1000, 34%",
        "5120 tokens/s, 1:23 left",
        "4.512 █▅▂▁",
        "here at step 335 (0:05 ago), at the coordinator at step 300",
        "sending 3f2a: 12.0 MB",
        "0:26 left",
        "answered in 35 ms, 4 ms of it its own",
        "1.2e15 FLOPs for 3 accepted pieces of work",
        "line 1",
        "Ctrl-C",
        "hdee-worker pause 1h",
    ):
        assert words in text, words
    assert f"line {MAX_SAID}\n" in text.replace(" \n", "\n")
    assert f"line {MAX_SAID + 1}" not in text


def test_a_pause_says_why_and_for_how_long():
    paused = TRAINING.model_copy(
        update={"state": "paused", "reason": "on battery", "pause_until": NOW + 90}
    )
    text = drawn(paused)
    assert "paused for 1:30 more" in text
    assert "on battery" in text
    forever = drawn(paused.model_copy(update={"pause_until": None}))
    assert "paused (for 1:05)" in forever


def test_a_worker_without_work_says_what_it_waits_for_and_when_it_asks_again():
    waiting = WorkerStatus(state="waiting", reason="no assignment is open now", asks_at=NOW + 8)
    found = dict(rows(waiting, NOW))
    assert found["next"] == "asks again in 0:08"
    assert found["why"] == "no assignment is open now"
    assert {"work", "step", "loss", "lease", "transfer", "server"}.isdisjoint(found)
    assert dict(rows(waiting, NOW + 9))["next"] == "asking now"


def test_a_worker_that_finishes_says_that_it_leaves_then():
    text = drawn(TRAINING.model_copy(update={"finishing": True}))
    assert "training, then it leaves" in text
    last = TRAINING.model_copy(update={"finishing": True, "state": "leaving"})
    assert "then it leaves" not in drawn(last)


def test_nothing_known_yet_is_shown_as_such():
    blank = {"loss": None, "losses": (), "local_step": None, "durable_step": None}
    found = dict(rows(TRAINING.model_copy(update={**blank, "eta_seconds": None}), NOW))
    assert found["loss"] == "-"
    assert found["saved"] == "nothing here yet, nothing at the coordinator yet"
    assert found["speed"] == "5120 tokens/s"
    assert credit_words(0, 0.0) == "none yet"
    assert credit_words(1, 0.0) == "none for 1 accepted piece of work"
    assert drawn(WorkerStatus())


def test_a_lease_that_ran_out_is_not_shown_as_running():
    late = dict(rows(TRAINING.model_copy(update={"lease_until": NOW - 3}), NOW))
    assert late["lease"].startswith("ran out 0:03 ago")


@pytest.mark.parametrize("width", [20, 40, 41, 80, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    lines = drawn(TRAINING, [(NOW, "x" * 500), (NOW, "two\nlines")], width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_a_long_line_is_wrapped_and_loses_nothing():
    words = (
        "no coordinator answers at https://hdee.example.org: ConnectError, all attempts failed; "
    )
    fix = "say --insecure on a private network, or ask the operator for an address with https"
    text = drawn(TRAINING, [(NOW, words + fix)])
    assert "…" not in text
    joined = " ".join(" ".join(line.split()) for line in text.splitlines())
    assert words + fix in joined


def test_at_forty_columns_every_fact_is_still_there():
    text = drawn(TRAINING, SAID, width=40)
    joined = "".join(line.strip("│ ") for line in text.splitlines()).replace(" ", "")
    for words in ("340/1000,34%", "5120tokens/s", "4.512█▅▂▁", "a0123456789abcdef", "1.2e15"):
        assert words in joined, words


def test_a_terminal_of_forty_by_twenty_four_shows_what_matters_most_and_overflows_nowhere():
    long = TRAINING.model_copy(update={"reason": "it finishes " + "in time and " * 12})
    lines = drawn(long, SAID, width=40, height=24).splitlines()
    assert len(lines) < 24
    text = "\n".join(lines)
    for words in ("training (for 1:05)", "340/1000, 34%", "Ctrl-C", "line 1"):
        assert words in text, words
    assert "answered in" not in text, "the first that it can do without"


@given(
    width=st.integers(20, 200),
    height=st.integers(6, 60),
    reason=st.text(max_size=300),
    said=st.lists(st.text(max_size=400), max_size=8),
)
def test_the_screen_fits_any_terminal_and_its_state_is_always_there(width, height, reason, said):
    status = TRAINING.model_copy(update={"reason": reason})
    lines = drawn(status, [(NOW, one) for one in said], width=width, height=height).splitlines()
    assert any("state" in line for line in lines)
    assert len(lines) < max(height, 8), "four rows and a frame are the least"
    assert max(map(cell_len, lines)) <= width


def test_no_colour_is_used_and_without_a_terminal_no_escape_code_at_all():
    assert "\x1b" not in drawn(TRAINING, SAID)
    on_terminal = drawn(TRAINING, SAID, force_terminal=True, color_system="truecolor")
    codes = {
        code for part in on_terminal.split("\x1b[")[1:] for code in part.split("m")[0].split(";")
    }
    assert codes <= {"0", "1", "2"}, "bold, dim and nothing else"


def test_names_of_strangers_command_no_terminal():
    evil = TRAINING.model_copy(
        update={"name": "\x1b[2Jx", "reason": "[bold]\x07", "work": "\x9b1m"}
    )
    text = drawn(evil, [(NOW, "\x1b]0;title\x07")])
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "[bold]" in text, "not taken for markup"


@given(st.lists(st.floats(-1e6, 1e6), max_size=100), st.integers(1, 40))
def test_a_sparkline_spans_from_the_lowest_to_the_highest(values, width):
    line = sparkline(values, width)
    shown = values[-width:]
    assert len(line) == len(shown)
    assert set(line) <= set(BLOCKS)
    if shown and max(shown) > min(shown):
        assert line[shown.index(max(shown))] == BLOCKS[-1]
        assert line[shown.index(min(shown))] == BLOCKS[0]
