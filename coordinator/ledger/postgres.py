"""What is particular to PostgreSQL: connections, one writer at a time, what its errors mean."""

import contextlib
from contextlib import AbstractContextManager

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from coordinator.ledger.errors import LedgerError

WRITERS_LOCK = 4_833_169_570_361_229
"""The advisory lock that whoever writes holds; in a database, locks are this ledger's own."""

CONNECT_SECONDS = 10
LOCK_SECONDS = 30
SILENT_WRITER_SECONDS = 60
"""A writer that stops in the middle, such as a suspended process, loses its transaction then."""

KEPT_READERS = 4
MOST_READERS = 16
MOST_WRITERS = 4
"""Connections of each process, readers' and writers' apart, so that neither takes the other's.
Those of four processes stay below the 100 that a server allows by default."""

READER_WAIT_SECONDS = 5.0
"""For a connection, when others read with all of them: well below what clients wait for."""

_LOCK = (
    f"SELECT pg_advisory_xact_lock({WRITERS_LOCK}), "
    f"set_config('idle_in_transaction_session_timeout', '{SILENT_WRITER_SECONDS}s', true)"
)

_ADVICE = (
    ("53", "the server lacks disk, memory or connections; see its log"),
    ("55P03", f"another writer did not end within {LOCK_SECONDS} s; see pg_stat_activity"),
    ("57", "the server was stopped or ended the query; see its log"),
    ("25P03", f"the writer was silent for {SILENT_WRITER_SECONDS} s and lost its transaction"),
)

_CONNECTION_ADVICE = (
    ("password", "check the user and the password in the url"),
    ("authentication", "check the user and the password in the url"),
    ("role", "create the user (createuser) or correct the url"),
    ("pg_hba.conf", "allow this user and host in the server's pg_hba.conf"),
    ("database", "create it (createdb --encoding=UTF8) or correct the url"),
    ("too many clients", "raise max_connections of the server or stop other programs"),
    ("remaining connection slots", "raise max_connections of the server or stop other programs"),
    ("", "check that the server runs and that host and port in the url are right"),
)


class PostgresBackend:
    """A ledger in a database of a PostgreSQL server.

    Writers of all processes take one advisory lock first, so that they follow each other as they
    do in SQLite: what a writer has read stays true until it commits. Readers see one state.
    """

    def __init__(self, url: URL) -> None:
        """LedgerError where `url` names no database."""
        if not url.database:
            raise LedgerError(
                f"ledger url {url.render_as_string()!r}: expected a database, "
                "as in postgresql+psycopg://user@host/database"
            )
        self.url = url
        self.reader = _connections(
            url,
            pool_size=KEPT_READERS,
            max_overflow=MOST_READERS - KEPT_READERS,
            pool_timeout=READER_WAIT_SECONDS,
        ).execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.writer = _connections(
            url, pool_size=MOST_WRITERS, max_overflow=0, pool_timeout=LOCK_SECONDS
        ).execution_options(isolation_level="READ COMMITTED")
        event.listen(self.writer, "begin", _queue)

    def turn(self) -> AbstractContextManager[None]:
        """The server queues its writers itself."""
        return contextlib.nullcontext()

    def check(self, connection: Connection) -> None:
        """LedgerError where the database cannot hold every text."""
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise LedgerError(
                f"ledger {self.url.render_as_string()}: its encoding is {encoding}, "
                "expected UTF8; create the database with createdb --encoding=UTF8"
            )

    def explain(self, error: DBAPIError) -> str | None:
        """What to do about `error` when the server is the cause, else None."""
        if not isinstance(error.orig, psycopg.OperationalError):
            return None
        state = error.orig.sqlstate
        if state is None or state.startswith("08"):
            text = str(error.orig)
            return next(advice for fragment, advice in _CONNECTION_ADVICE if fragment in text)
        return next((advice for code, advice in _ADVICE if state.startswith(code)), None)

    def close(self) -> None:
        """Close all connections."""
        self.reader.dispose()
        self.writer.dispose()


def _connections(url: URL, **pool: float) -> Engine:
    engine = create_engine(
        url,
        connect_args={"connect_timeout": CONNECT_SECONDS},
        pool_use_lifo=True,
        # A restart of the server then costs a round trip and not somebody's request.
        pool_pre_ping=True,
        **pool,
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(raw: psycopg.Connection, _record: object) -> None:
    raw.autocommit = True
    raw.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    raw.autocommit = False


def _queue(connection: Connection) -> None:
    connection.exec_driver_sql(_LOCK)
