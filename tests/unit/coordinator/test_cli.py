"""What the operator's verbs decide and show, without a coordinator."""

import io
import sys

import pytest

from coordinator.cli.errors import WrongUsage
from coordinator.cli.ledger import facts_of, lines_of
from coordinator.cli.looks import checked_assignment, pick_worker
from coordinator.cli.remote import address_of, is_loopback
from coordinator.cli.tables import large, show_assignments, show_why
from coordinator.ledger.queries import BrokenEntry, Difference, Verdict
from coordinator.runfile import load_run_file
from protocol.admin import ConsideredView, RateView, WhyView
from protocol.views import AssignmentView
from shared.tables import Progress, show_table
from shared.words import plain

ANNA, BERT = "12D3KooW" + "A" * 44, "12D3KooW" + "A" * 43 + "B"


@pytest.fixture
def run(write_run):
    def load(**listen):
        lines = "".join(f"{key} = {value!r}\n" for key, value in listen.items())
        return load_run_file(write_run(("[tokenizer]", f"[listen]\n{lines}[tokenizer]")))

    return load


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8700"),
        ("0.0.0.0", "http://127.0.0.1:8700"),
        ("::", "http://[::1]:8700"),
        ("10.0.0.7", "http://10.0.0.7:8700"),
    ],
)
def test_a_run_is_asked_where_its_run_file_lets_it_listen(run, host, expected):
    assert address_of(run(api_host=host), None) == expected


def test_the_admin_token_crosses_no_network_in_the_clear(run):
    listening = run(api_host="10.0.0.7", public_host="swarm.lan")
    for url in ("https://swarm.example.org/", "http://localhost:1", "http://[::1]:1"):
        assert address_of(listening, url) == url.rstrip("/")
    for url in ("http://10.0.0.7:8700", "http://swarm.lan:8700"):
        assert address_of(listening, url) == url
    for url in ("http://swarm.example.org", "http://127.0.0.1.example.org", "http://10.0.0.8"):
        with pytest.raises(WrongUsage, match="admin token"):
            address_of(listening, url)
    for url in ("ftp://localhost", "localhost:8700", "https://", "http://[::1"):
        with pytest.raises(WrongUsage, match="--url"):
            address_of(listening, url)


def test_only_this_machine_is_this_machine():
    assert is_loopback("localhost")
    assert is_loopback("127.8.8.8")
    assert not is_loopback("localhost.example.org")
    assert not is_loopback("8.8.8.8")


def test_a_worker_is_meant_by_its_id_the_end_of_it_or_its_name():
    workers = [(ANNA, "anna"), (BERT, "bert")]
    assert pick_worker(workers, ANNA) == ANNA
    assert pick_worker(workers, "AB") == BERT
    assert pick_worker(workers, "anna") == ANNA


def test_a_worker_that_is_nobody_or_several_is_refused():
    workers = [(ANNA, "anna"), (BERT, "anna")]
    for text in ("", "carl"):
        with pytest.raises(WrongUsage, match="no worker"):
            pick_worker(workers, text)
    with pytest.raises(WrongUsage, match="2 workers match") as refused:
        pick_worker(workers, "anna")
    assert ANNA in str(refused.value)
    assert BERT in str(refused.value)


def test_an_assignment_is_meant_by_its_whole_id():
    assert checked_assignment("a" + "0f" * 8) == "a" + "0f" * 8
    for text in ("", "a0", "A" + "0f" * 8, "a" + "0f" * 8 + "\n", "../" + "0" * 14):
        with pytest.raises(WrongUsage, match="expected an id"):
            checked_assignment(text)


def test_a_strangers_text_commands_no_terminal():
    assert plain("\x1b[2Jwiped\r\x00\u202e") == "?[2Jwiped???"
    assert plain("two\nlines, größer") == "two\nlines, größer"


def test_large_numbers_get_a_prefix():
    shown = [large(number, "FLOP") for number in (0, 999, 1.5e9, 2e13, 3e18, 4e22)]
    assert shown == [
        "0 FLOP", "999 FLOP", "1.50 GFLOP", "20.00 TFLOP", "3.00 EFLOP", "40000.00 EFLOP"
    ]  # fmt: skip


def test_a_table_in_a_pipe_is_one_line_a_row_however_long(capsys):
    show_table(("a", ">b"), [("x" * 300, "[red]1[/red]"), ("y", "2\x1b")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == "x" * 300 + "  [red]1[/red]"
    assert lines[2].endswith(" 2?")


def test_a_table_on_a_screen_keeps_to_its_width(capsys, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", screen)
    show_table(("a", "b"), [("x" * 100, "y")])
    monkeypatch.undo()
    _, *rows = screen.getvalue().splitlines()
    assert (len(rows), max(map(len, rows))) == (2, 60)


def test_a_backup_is_named_as_one(capsys):
    view = AssignmentView(
        assignment="a" + "1" * 16,
        spec="0" * 64,
        backup_of="a" + "2" * 16,
        kind="expert",
        domain="python",
        ffn_width=64,
        num_steps=200,
        state="running",
        worker=BERT,
        fencing=1,
        step=50,
        durable_step=None,
        loss=None,
        reason="",
        age_seconds=5.0,
    )
    show_assignments([view])
    row = capsys.readouterr().out.splitlines()[1]
    assert "50/200  25 %" in row
    assert f"backup of a{'2' * 16}" in row


def test_an_account_names_the_wait_and_the_limit(capsys):
    view = WhyView(
        worker=BERT,
        name="",
        state="idle",
        age_seconds=1.0,
        holds=None,
        uncollected=0,
        blockers=(),
        answer="wait for anna",
        expected_flops_per_second=1e9,
        waited_seconds=20.0,
        patience_seconds=30.0,
        rate=RateView(calls_left=0, calls_a_second=1.0, retry_after_seconds=0.5),
        considered=(
            ConsideredView(
                assignment="a" + "1" * 16,
                description="64-wide python expert",
                fits=True,
                given=False,
                words="worker AAAAAA is expected to finish it sooner, in 5 s",
                finish_seconds=50.0,
                target_seconds=-1.0,
                sooner=ANNA,
                sooner_seconds=5.0,
            ),
        ),
        next_after=None,
    )
    show_why(view)
    out = capsys.readouterr().out
    assert "if it asked now: wait for anna" in out
    assert "told 20 s ago to leave open work to others; waits 30 s" in out
    assert "0 calls left, the next in 0.5 s" in out
    assert "50 s     0 s  worker AAAAAA is expected to finish it sooner" in out


def test_a_long_verb_says_how_far_it_is_and_how_long_it_takes():
    said: list[str] = []
    times = iter([100.0, 100.5, 110.0, 110.5, 120.0, 130.0])
    progress = Progress("entries replayed", say=said.append, clock=lambda: next(times))
    for done in (10, 20, 110, 115, 210, 410):
        progress.tell(done, 410)
    assert said == [
        "entries replayed: 26 %, about 30 s left",
        "entries replayed: 51 %, about 20 s left",
    ]


def test_a_verb_that_takes_no_longer_than_a_moment_says_nothing_of_how_far_it_is():
    said: list[str] = []
    times = iter([100.0, 104.9, 105.1, 105.2, 106.2])
    progress = Progress("hashed", quiet_seconds=5.0, say=said.append, clock=lambda: next(times))
    for done in (0, 49, 51, 52, 62):
        progress.tell(done, 100)
    assert said == ["hashed: 51 %, about 5 s left", "hashed: 62 %, about 4 s left"]


def test_a_broken_chain_is_told_with_its_entry():
    verdict = Verdict(7, "f" * 64, BrokenEntry(3, "its content does not give its digest"), (), {})
    lines = lines_of(verdict, name="sqlite:////l")
    assert lines[1] == "entry 3: its content does not give its digest"
    assert "BROKEN" in lines[-1]
    assert facts_of(verdict)["broken"] == {
        "number": 3,
        "reason": "its content does not give its digest",
    }
    assert facts_of(verdict)["holds"] is False


def test_a_difference_is_told_by_the_columns_that_differ():
    found = {"worker": BERT, "banned": 0, "name": "bert"}
    difference = Difference("workers", (BERT,), found, found | {"banned": 1})
    verdict = Verdict(7, "f" * 64, None, (difference,), {"workers": 1})
    assert lines_of(verdict, name="l")[2:5] == [
        f"workers {BERT}:",
        "  found     banned 0",
        "  expected  banned 1",
    ]


def test_an_empty_ledger_holds():
    assert lines_of(Verdict(0, "", None, (), {}), name="l")[0].endswith("head digest none")
