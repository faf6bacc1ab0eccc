"""The operator's verbs against a run that is really served."""

import json
import subprocess

import pytest
from sqlalchemy import text

from coordinator.ledger import Ledger
from tests.integration.operating.served import PROGRAM, Worker, free_port, write_run


@pytest.fixture(scope="module")
def anna(run, work) -> Worker:
    return run.join("anna")


@pytest.fixture(scope="module")
def bert(run, work) -> Worker:
    return run.join("bert", free_memory_bytes=1000)


def test_the_program_itself_lists_workers(run, anna, bert):
    done = subprocess.run(
        [PROGRAM, "workers", run.run_file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows, total = done.stdout.splitlines()
    assert header.split()[:5] == ["name", "id", "state", "device", "memory"]
    assert {row.split()[0] for row in rows} == {"anna", "bert"}
    assert total.startswith("2 workers: ")


def test_the_status_is_asked_by_run_file_or_url(call, told, run):
    assert told("status")["run"] == "operated"
    code, out, _ = call("status", run_file=run.url)
    assert (code, out.split(":")[0]) == (0, "run operated")


def test_workers_and_assignments_are_lists_for_programs(told, anna, bert, work):
    assert {view["worker"] for view in told("workers")} == {anna.id, bert.id}
    assert [view["assignment"] for view in told("assignments")] == work
    assert told("assignments", "--state", "failed") == []


def test_assignments_show_how_far_each_is(call, anna, work):
    code, out, _ = call("assignments")
    assert code == 0
    header, *rows, total = out.splitlines()
    assert header.split() == [
        "assignment", "state", "domain", "width", "step", "done", "worker", "since", "reason"
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == work
    assert "0/1000   0 %" in rows[0]
    assert total == "6 assignments: 6 open"


def test_why_is_a_table_by_assignment(call, bert, work):
    code, out, _ = call("why", "bert", "--limit", "2")
    assert code == 0
    assert out.startswith(f"worker bert ({bert.id}): idle")
    assert f"{work[0]}  512-wide text seed  no" in out
    assert "0 MB" in out
    assert "memory: needs " in out
    assert out.splitlines()[-1] == f"more: --after {work[1]}"


def test_why_is_paged_for_programs(told, bert, work):
    view = told("why", bert.id[-8:], "--after", work[3])
    assert [one["assignment"] for one in view["considered"]] == work[4:]
    assert {one["requirement"] for one in view["considered"]} == {"memory"}
    assert view["next_after"] is None


def test_a_worker_is_banned_by_its_name_and_let_in_again(call, told, run):
    carl = run.join("carl")
    code, out, _ = call("ban", "carl", "--reason", "too loud")
    assert (code, out) == (0, f"worker {carl.id}: banned, not draining\n")
    assert carl.lease()["code"] == "banned"
    assert told("unban", carl.id) == {"worker": carl.id, "banned": False, "draining": False}
    (entry,) = [one for one in told("ledger entries") if one["kind"] == "ban"]
    assert entry["facts"] == {"reason": "too loud"}


def test_a_drained_worker_is_shown_as_such(call, told, run):
    dora = run.join("dora")
    assert told("drain", "dora")["draining"] is True
    code, out, _ = call("workers")
    (row,) = [line for line in out.splitlines() if line.startswith("dora")]
    assert "idle, draining" in row
    assert "no more work" in dora.lease()["reason"]
    code, out, _ = call("why", "dora")
    assert "gets nothing now: the operator asked it to take no more work" in out
    code, out, _ = call("undrain", "dora")
    assert (code, out) == (0, f"worker {dora.id}: not banned, not draining\n")


def test_assignments_are_cancelled_failed_and_opened_again(call, told, work):
    code, out, _ = call("cancel", work[0], "--reason", "a mistake")
    assert (code, out) == (0, f"assignment {work[0]}: cancelled\n")
    assert told("fail", work[1])["state"] == "failed"
    reasons = {view["assignment"]: view["reason"] for view in told("assignments")}
    assert reasons[work[0]] == "cancelled: a mistake"
    for assignment in work[:2]:
        assert told("retry", assignment)["state"] == "open"


def test_a_pause_stops_new_offers_until_it_is_taken_back(call, told, anna):
    code, out, _ = call("pause", "--reason", "lunch")
    assert (code, out) == (0, "run operated makes no new offers; leases go on\n")
    assert "paused" in anna.lease()["reason"]
    assert told("resume") == {"run": "operated", "paused": False}


def test_what_the_coordinator_refuses_ends_with_4_and_its_words(call, work, anna):
    held = anna.lease()["offer"]["assignment"]
    code, out, err = call("retry", held)
    assert (code, out) == (4, "")
    assert err == f"hdee-coordinator: {held} is offered: cannot retry\n"
    assert call("ban", "12D3KooW" + "A" * 44)[0] == 4
    assert call("cancel", f"a{'0' * 16}")[0] == 4


def test_another_runs_token_ends_with_4_and_names_its_file(call, run):
    token = run.folders.admin_token
    before = token.read_text()
    token.write_text("another\n")
    try:
        code, out, err = call("pause")
    finally:
        token.write_text(before)
    assert (code, out) == (4, "")
    assert str(token) in err


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("why", ["nobody"], "`hdee-coordinator workers` lists them"),
        ("ban", ["O"], "hdee-coordinator"),
        ("retry", ["python"], "expected an id such as"),
        ("pause", ["--reason", "x" * 501], "at most 500"),
        ("workers", ["--url", "http://example.org"], "admin token"),
        ("workers", ["--url", "ftp://127.0.0.1"], "expected http"),
        ("workers", ["--url", "http://[::1"], "not a URL"),
        ("why", [], "Usage"),
        ("why", ["anna", "--limit", "0"], "limit"),
        ("assignments", ["--state", "lost"], "state"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_right(call, verb, arguments, words):
    code, out, err = call(verb, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_where_nobody_listens_verbs_end_with_3(call, run):
    for verb, arguments in (("workers", []), ("ban", ["anna"]), ("pause", [])):
        code, out, err = call(verb, *arguments, "--url", f"http://127.0.0.1:{free_port()}")
        assert (code, out) == (3, "")
        assert "hdee-coordinator serve" in err


def test_another_run_at_the_same_address_ends_with_3_before_it_sees_the_token(call, run, tmp_path):
    other = write_run(tmp_path / "other")
    code, out, err = call("pause", "--url", run.url, run_file=other)
    assert (code, out) == (3, "")
    assert "serves run 'operated' of coordinator" in err


def test_a_ledger_is_verified_while_it_is_served(call, told, run):
    code, out, _ = call("ledger verify")
    assert code == 0
    first, rows, last = out.splitlines()
    assert str(run.folders.ledger) in first
    assert "domains 2" in rows
    assert last == "the chain is whole, and the tables are what it says"
    facts = told("ledger verify")
    assert facts["holds"] is True
    assert facts["head"] in out
    assert f"{facts['entries']} entries" in first


def test_entries_are_paged(call, told):
    code, out, _ = call("ledger entries", "--limit", 2)
    header, first, _, more = out.splitlines()
    assert (code, first.split()[3]) == (0, "run")
    assert header.split() == ["number", "at", "kind", "digest", "rows", "facts"]
    assert more == "more: --after 2"
    (third,) = told("ledger entries", "--after", 2, "--limit", 1)
    assert third["number"] == 3


def test_a_copy_made_while_serving_is_a_ledger_with_the_same_chain(call, told, tmp_path):
    copy = tmp_path / "copy.sqlite"
    report = told("backup", copy)
    assert report["bytes"] == copy.stat().st_size
    facts = told("ledger verify", "--database", f"sqlite:///{copy}")
    assert (facts["entries"], facts["head"]) == (report["last_entry"], report["last_digest"])
    code, out, err = call("backup", copy)
    assert (code, out) == (1, "")
    assert "exists already" in err


def test_rows_that_somebody_changed_are_shown_and_end_with_1(call, told, tmp_path):
    copy = tmp_path / "copy.sqlite"
    told("backup", copy)
    ledger = Ledger(f"sqlite:///{copy}")
    with ledger.begin() as connection:
        connection.execute(text("UPDATE run SET round = 7"))
        connection.execute(text("DELETE FROM shards WHERE domain = 'cooking' AND split = 'gate'"))
    ledger.close()
    code, out, _ = call("ledger verify", "--database", f"sqlite:///{copy}")
    assert code == 1
    assert "run 1:\n  found     round 7\n  expected  round 1\n" in out
    assert "shards cooking, gate:\n  found     no such row\n  expected  " in out
    assert "BROKEN: 2 row(s) differ" in out
    code, out, _ = call("ledger verify", "--database", f"sqlite:///{copy}", "--format", "json")
    assert code == 1
    assert [one["table"] for one in json.loads(out)["differences"]] == ["run", "shards"]
