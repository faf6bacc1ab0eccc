"""Copies of a ledger that is written meanwhile: whole, one state, and never half a file."""

import shutil
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest
from sqlalchemy import func, select, text

from coordinator.ledger import Ledger, LedgerError
from coordinator.ledger.backup import backup
from coordinator.ledger.entries import record, verify_chain
from coordinator.ledger.tables import entries, nonces

WRITES_FOREVER = """
import sys
from coordinator.ledger import Ledger
from coordinator.ledger.entries import record
from coordinator.ledger.tables import nonces

ledger, number = Ledger(sys.argv[1]), 1000
while True:
    with ledger.begin() as connection:
        for _ in range(10):
            number += 1
            record(connection, "phase", facts={"number": number}, now=1.0)
            connection.execute(nonces.insert(), {"nonce": str(number), "expires_at": 1.0})
    print(number, flush=True)
"""


@pytest.fixture
def opened(prepared_database):
    ledger = Ledger(prepared_database)
    with ledger.begin() as connection:
        for number in range(1000):
            record(connection, "phase", facts={"number": number}, now=1.0)
            connection.execute(nonces.insert(), {"nonce": str(number), "expires_at": 1.0})
    yield ledger
    ledger.close()


@pytest.fixture
def busy(opened):
    """The ledger while another process writes it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOREVER, opened.url.render_as_string(hide_password=False)],
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    yield opened
    process.send_signal(signal.SIGKILL)
    process.communicate()


def counts(ledger: Ledger) -> tuple[int, int, int]:
    """The last entry, how many there are, and how many rows were written with them."""
    with ledger.read() as connection:
        assert verify_chain(connection) is None
        last, number = connection.execute(
            select(func.max(entries.c.number), func.count(entries.c.number))
        ).one()
        return last, number, connection.execute(select(func.count(nonces.c.nonce))).scalar()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_copy_made_while_another_process_writes_is_a_ledger_of_one_state(busy, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    shares = []
    report = backup(busy, folder / "copy.sqlite", shares.append)
    assert names(folder) == {"copy.sqlite"}
    assert report.num_bytes == report.path.stat().st_size
    assert stat.S_IMODE(report.path.stat().st_mode) == 0o600
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    copy = Ledger(f"sqlite:///{report.path}")
    copy.create()
    assert counts(copy) == (report.last_entry,) * 3
    assert report.last_entry > 1000
    with copy.begin() as connection:
        assert record(connection, "phase", now=2.0) == report.last_entry + 1
    copy.close()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_dump_made_while_another_process_writes_restores_to_one_state(
    busy, tmp_path, postgres_server
):
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        pytest.skip("no pg_dump is installed (Debian: apt-get install postgresql-client)")
    report = backup(busy, tmp_path / "ledger.dump", lambda _share: None)
    name = postgres_server.create_database()
    restore = ["pg_restore", "--exit-on-error", f"--host={postgres_server.folder}"]
    subprocess.run([*restore, "--username=postgres", f"--dbname={name}", report.path], check=True)
    copy = Ledger(postgres_server.url(name))
    copy.create()
    assert counts(copy) == (report.last_entry,) * 3
    assert report.last_entry > 1000
    copy.close()
    postgres_server.drop_database(name)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_without_pg_dump_the_operator_is_told_what_to_run(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LedgerError, match="run pg_dump --format=custom"):
        backup(opened, tmp_path / "ledger.dump", lambda _share: None)
    assert names(tmp_path) == set()


def test_a_backup_overwrites_nothing(opened, tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep me")
    with pytest.raises(LedgerError, match="exists already"):
        backup(opened, target, lambda _share: None)
    assert target.read_text() == "keep me"


def test_a_backup_into_a_missing_folder_is_refused(opened, tmp_path):
    with pytest.raises(LedgerError, match="No such file or directory"):
        backup(opened, tmp_path / "missing" / "copy", lambda _share: None)


def test_a_backup_of_a_missing_ledger_makes_none(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with pytest.raises(LedgerError, match="there is no such file"):
        backup(ledger, tmp_path / "copy", lambda _share: None)
    assert names(tmp_path) == set()


def test_a_backup_of_another_database_is_refused(database, tmp_path):
    ledger = Ledger(database)
    with ledger.begin() as connection:
        connection.execute(text("CREATE TABLE recipes (name TEXT)"))
    with pytest.raises(LedgerError, match="entries"):
        backup(ledger, tmp_path / "copy", lambda _share: None)
    assert not [name for name in names(tmp_path) if "copy" in name]
    ledger.close()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_ledger_with_a_broken_chain_is_not_passed_off_as_a_backup(opened, tmp_path):
    raw = sqlite3.connect(opened.path)
    raw.execute("DROP TRIGGER entries_no_update")
    raw.execute("UPDATE entries SET kind = 'accept' WHERE number = 500")
    raw.commit()
    raw.close()
    with pytest.raises(LedgerError, match="entry 500: its content does not give its digest"):
        backup(opened, tmp_path / "copy.sqlite", lambda _share: None)
    assert not [name for name in names(tmp_path) if "copy" in name]
