"""The ledger as a database: urls, schema, who may change what, and what an operator is told."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from coordinator.ledger import Ledger, LedgerError, LedgerUnavailable
from coordinator.ledger.postgres import MOST_WRITERS
from coordinator.ledger.tables import entries, metadata, nonces

CREATE = "import sys; from coordinator.ledger import Ledger; Ledger(sys.argv[1]).create()"


@pytest.fixture
def opened(prepared_database):
    ledger = Ledger(prepared_database)
    yield ledger
    ledger.close()


def add_entry(connection, number: int) -> None:
    row = {"number": number, "at": 1.0, "kind": "phase", "body": "{}", "previous": ""}
    connection.execute(entries.insert(), {**row, "digest": f"{number:064x}"})


@pytest.mark.parametrize(
    "url",
    [
        "ledger.sqlite",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:////srv/ledger.sqlite?mode=ro",
        "mysql://user:sesame@host/run",
        "postgresql://user:sesame@host/run",
        "postgresql+psycopg://user:sesame@host",
        "postgresql+psycopg://user:sesame@host:port/run",
    ],
)
def test_an_unusable_url_is_refused_in_words_that_hide_its_password(url):
    with pytest.raises(LedgerError, match="expected") as caught:
        Ledger(url)
    assert "sesame" not in str(caught.value)


def test_a_created_ledger_has_exactly_the_tables_that_the_code_uses(database):
    ledger = Ledger(database)
    ledger.create()
    with ledger.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        names = {table.name for table in metadata.tables.values()}
        assert set(inspect(connection).get_table_names()) == names | {"alembic_version"}
    ledger.close()


def test_a_prepared_database_is_a_created_ledger(opened):
    with opened.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_creating_again_keeps_what_is_there(opened):
    with opened.begin() as connection:
        add_entry(connection, 1)
    opened.create()
    with opened.read() as connection:
        assert connection.execute(entries.select()).one().number == 1


def test_two_processes_may_create_one_ledger_at_once(database):
    started = [
        subprocess.Popen([sys.executable, "-c", CREATE, database], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors.decode()
    ledger = Ledger(database)
    with ledger.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    ledger.close()


def test_a_database_with_other_tables_is_left_alone(database):
    ledger = Ledger(database)
    with ledger.begin() as connection:
        connection.execute(text("CREATE TABLE recipes (name TEXT)"))
    with pytest.raises(LedgerError, match=r"other tables.*recipes.*expected an empty"):
        ledger.create()
    with ledger.read() as connection:
        assert inspect(connection).get_table_names() == ["recipes"]
    ledger.close()


def test_a_ledger_of_a_newer_version_is_refused_untouched(opened):
    with opened.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="'9999' is not known here, expected at most '0005'"):
        opened.create()
    with opened.read() as connection:
        assert (
            connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        )


def test_a_failed_creation_leaves_nothing(database):
    ledger = Ledger(database)
    with ledger.begin() as connection:
        # Not a table, so that the database looks empty, but in the way of one.
        connection.execute(text("CREATE VIEW wanted AS SELECT 1 AS one"))
    with pytest.raises(DBAPIError):
        ledger.create()
    with ledger.read() as connection:
        assert inspect(connection).get_table_names() == []
    ledger.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET kind = 'accept' WHERE number = 1",
        "DELETE FROM entries WHERE number = 1",
        "DELETE FROM entries",
    ],
)
def test_entries_can_be_neither_changed_nor_removed(opened, statement):
    with opened.begin() as connection:
        add_entry(connection, 1)
    with pytest.raises(DBAPIError, match="append-only"), opened.begin() as connection:
        connection.execute(text(statement))
    with opened.read() as connection:
        assert connection.execute(entries.select()).one().kind == "phase"


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_entries_cannot_be_truncated(opened):
    with pytest.raises(DBAPIError, match="append-only"), opened.begin() as connection:
        connection.execute(text("TRUNCATE entries"))


def test_a_reader_sees_one_state_while_others_write(opened):
    with opened.read() as reader:
        assert reader.execute(nonces.select()).all() == []
        with opened.begin() as writer:
            writer.execute(nonces.insert(), {"nonce": "a", "expires_at": 1.0})
        assert reader.execute(nonces.select()).all() == []
    with opened.read() as reader:
        assert len(reader.execute(nonces.select()).all()) == 1


def test_a_reader_cannot_write(opened):
    with pytest.raises((DBAPIError, LedgerError)), opened.read() as connection:
        connection.execute(nonces.insert(), {"nonce": "a", "expires_at": 1.0})
    with opened.begin() as connection:
        connection.execute(nonces.insert(), {"nonce": "b", "expires_at": 1.0})
    with opened.read() as connection:
        assert [row.nonce for row in connection.execute(nonces.select())] == ["b"]


def test_a_failing_writer_leaves_nothing(opened):
    def fail():
        with opened.begin() as connection:
            connection.execute(nonces.insert(), {"nonce": "a", "expires_at": 1.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with opened.read() as reader:
        assert reader.execute(nonces.select()).all() == []


def test_more_threads_may_write_than_there_are_connections(opened):
    def write(number: int) -> None:
        with opened.begin() as connection:
            row = {"nonce": str(number), "expires_at": 1.0}
            connection.execute(nonces.insert(), row)

    with ThreadPoolExecutor(3 * MOST_WRITERS) as threads:
        list(threads.map(write, range(50)))
    with opened.read() as connection:
        assert len(connection.execute(nonces.select()).all()) == 50


def test_a_missing_folder_is_said_in_words(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'missing' / 'ledger.sqlite'}")
    with pytest.raises(LedgerUnavailable, match="check the folder"):
        ledger.create()
    with pytest.raises(LedgerUnavailable, match="check the folder"), ledger.read():
        pass


def test_a_locked_file_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("coordinator.ledger.sqlite.BUSY_TIMEOUT_MILLISECONDS", 50)
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.create()
    shell = create_engine(f"sqlite:///{path}").connect()
    shell.exec_driver_sql("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="holds the file locked"), ledger.begin():
        pass
    shell.close()
    shell.engine.dispose()
    ledger.close()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_write_ahead_log_is_emptied_once_its_readers_let_it_be(prepared_database, monkeypatch):
    limit = 200_000
    monkeypatch.setattr("coordinator.ledger.sqlite.LOG_BYTES", limit)
    ledger = Ledger(prepared_database)
    log = ledger.path.with_name(ledger.path.name + "-wal")
    numbers = count()

    def write() -> int:
        with ledger.begin() as connection:
            rows = [{"nonce": str(next(numbers)), "expires_at": 1.0} for _ in range(50)]
            connection.execute(nonces.insert(), rows)
        return log.stat().st_size

    with ledger.read() as reader:
        assert reader.execute(nonces.select()).all() == []
        while write() < 2 * limit:
            pass
    while write() > limit // 4:
        pass
    with ledger.read() as reader:
        assert len(reader.execute(nonces.select()).all()) == next(numbers)
    ledger.close()


def test_a_server_that_is_not_there_is_said_in_words(tmp_path):
    ledger = Ledger(f"postgresql+psycopg://user:sesame@/run?host={tmp_path}")
    with pytest.raises(LedgerUnavailable, match="check that the server runs") as caught:
        ledger.create()
    assert "sesame" not in str(caught.value)


def test_a_wrong_password_is_said_in_words(postgres_server):
    ledger = Ledger(postgres_server.url("postgres", user="guarded", password="guess"))
    with pytest.raises(LedgerUnavailable, match="check the user and the password") as caught:
        ledger.create()
    assert "guess" not in str(caught.value)


def test_the_right_password_opens(postgres_server):
    ledger = Ledger(postgres_server.url("postgres", user="guarded", password="open/sesame"))
    with ledger.read() as connection:
        assert connection.execute(text("SELECT current_user")).scalar() == "guarded"
    ledger.close()


def test_a_missing_database_is_said_in_words(postgres_server):
    ledger = Ledger(postgres_server.url("nowhere"))
    with pytest.raises(LedgerUnavailable, match=r'"nowhere" does not exist.*createdb'):
        ledger.create()


def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server):
    name = postgres_server.create_database(encoding="LATIN1")
    ledger = Ledger(postgres_server.url(name))
    with pytest.raises(LedgerError, match="encoding is LATIN1, expected UTF8"):
        ledger.create()
    ledger.close()
    postgres_server.drop_database(name)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_lost_connection_is_unavailable_and_the_next_writer_gets_a_new_one(opened):
    kill = text("SELECT pg_terminate_backend(:pid)")

    def lose():
        with opened.begin() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            with opened.read() as other:
                other.execute(kill, {"pid": pid})
            connection.execute(nonces.insert(), {"nonce": "a", "expires_at": 1.0})

    with pytest.raises(LedgerUnavailable):
        lose()
    with opened.begin() as connection:
        connection.execute(nonces.insert(), {"nonce": "b", "expires_at": 1.0})
    with opened.read() as connection:
        assert [row.nonce for row in connection.execute(nonces.select())] == ["b"]
