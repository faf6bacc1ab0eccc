"""Where a run's ledger is, what becomes of it, and what is said when it is not there."""

import signal
import subprocess

import psutil
import pytest

from tests.integration.operating.served import PROGRAM, Run, free_port, wait_for, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """As the run of the other tests, but nobody serves it: these ask no api, or their own."""
    made = Run(write_run(tmp_path_factory.mktemp("run")))
    made.prepare()
    return made


@pytest.mark.parametrize("verb", ["ledger verify", "ledger entries", "backup"])
def test_a_ledger_that_is_not_there_ends_with_1_and_is_not_made(call, tmp_path, verb):
    missing, other = tmp_path / "missing.sqlite", tmp_path / "other.sqlite"
    target = [tmp_path / "copy"] if verb == "backup" else []
    code, out, err = call(verb, *target, "--database", f"sqlite:///{missing}")
    assert (code, out) == (1, "")
    assert str(missing) in err
    assert not missing.exists()
    other.touch()
    code, out, err = call(verb, *target, "--database", f"sqlite:///{other}")
    assert (code, out) == (1, "")
    assert "entries" in err
    assert "Traceback" not in err


def test_a_ledger_url_that_is_none_is_refused_before_anything_starts(call, run):
    for url in ("mysql://host/db", "sqlite:///relative.sqlite"):
        code, out, err = call("check", "--database", url)
        assert (code, out) == (1, "")
        assert "expected" in err
        code, _, err = call("serve", "--database", url)
        assert code == 1
        assert "expected" in err


def test_check_says_where_the_ledger_is_and_shows_no_password(call, told, run, monkeypatch):
    assert told("check")["ledger"] == run.folders.ledger_url
    monkeypatch.setenv("HDEE_DATABASE", "postgresql+psycopg://hdee:secret@db/hdee")
    code, out, _ = call("check")
    assert code == 0
    assert "ledger postgresql+psycopg://hdee:***@db/hdee" in out
    assert "secret" not in out
    assert told("check", "--database", "sqlite:////srv/l")["ledger"] == "sqlite:////srv/l"


def test_the_run_file_may_name_the_ledger_and_the_command_line_overrules_it(call, run, tmp_path):
    named = run.run_file.with_name("named.toml")
    named.write_text(
        run.run_file.read_text() + '[ledger]\ndatabase = "postgresql+psycopg://a@b/c"\n'
    )
    assert "ledger postgresql+psycopg://a@b/c" in call("check", run_file=named)[1]
    url = f"sqlite:///{tmp_path / 'l'}"
    assert f"ledger {url}" in call("check", "--database", url, run_file=named)[1]


def test_a_run_is_served_from_postgresql(call, postgres_server, run, work, tmp_path, monkeypatch):
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    named = run.run_file.with_name("postgres.toml")
    port = run.url.rpartition(":")[2]
    named.write_text(run.run_file.read_text().replace(port, str(free_port())))
    served = Run(named, {"HDEE_DATABASE": url})
    served.prepare()
    served.serve()
    try:
        (assignment,) = served.add_work(1)
        assert call("cancel", assignment, run_file=named)[0] == 0
        code, out, _ = call("ledger verify", "--database", url, run_file=named)
        assert code == 0
        assert "the chain is whole" in out
        assert f"/{name}" in out
        monkeypatch.setenv("HDEE_DATABASE", url)
        code, out, _ = call("backup", tmp_path / "dump", run_file=named)
        assert (code, (tmp_path / "dump").read_bytes()[:5]) == (0, b"PGDMP")
    finally:
        served.stop()
        postgres_server.drop_database(name)


def test_roles_are_told_the_ledger_where_other_users_cannot_read_it(run, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    process = subprocess.Popen(
        [PROGRAM, "serve", run.run_file, "--database", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        (child,) = wait_for(psutil.Process(process.pid).children)
        # Between fork and exec a child still has its parent's command line.
        wait_for(lambda: "prepare" in child.cmdline())
        assert url not in " ".join(child.cmdline())
        assert child.environ()["HDEE_DATABASE"] == url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def test_a_run_goes_on_from_a_copy_put_in_the_place_of_its_ledger(call, tmp_path):
    lost = Run(write_run(tmp_path / "lost"))
    lost.prepare()
    (kept,) = lost.add_work(1)
    copy = tmp_path / "copy.sqlite"
    assert call("backup", copy, run_file=lost.run_file)[0] == 0
    assert len(lost.add_work(3)) == 3
    for ending in ("", "-wal", "-shm"):
        lost.folders.ledger.with_name(f"ledger.sqlite{ending}").unlink(missing_ok=True)
    copy.rename(lost.folders.ledger)
    assert call("ledger verify", run_file=lost.run_file)[0] == 0
    lost.serve()
    try:
        assert lost.join("anna").lease()["offer"]["assignment"] == kept
        assert call("ledger verify", run_file=lost.run_file)[0] == 0
    finally:
        lost.stop()
