"""What is particular to SQLite: connections, beginning a transaction, what its errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from coordinator.ledger.errors import LedgerError
from coordinator.ledger.turnstile import Turnstile

BUSY_TIMEOUT_MILLISECONDS = 30_000
"""For those who write without a turn, such as an operator's shell. Ours wait at the turnstile."""

CHECKPOINT_PAGES = 4000
"""Pages in the write-ahead log (16 MB) before they are copied into the database.

Measured with groups of 50 random updates over 50,000 rows: 15 to 20 % more writes a second than
with SQLite's 1,000 pages, while no commit takes over 50 ms. A larger page cache and memory-mapped
reads changed nothing: the system's cache already holds the file.
"""

LOG_BYTES = 64 << 20
LOG_WAIT_MILLISECONDS = 50
"""A longer write-ahead log is emptied, for which its readers must end: how long a writer waits.

SQLite begins a log anew only when nobody reads it. With six readers that overlapped all the time
it grew by 20 MB a second without end.
"""

KEPT_READERS = 8
MOST_READERS = 40
READER_WAIT_SECONDS = 5.0
"""Readers' connections of each process, and how long one more waits for one: well below what
clients wait for. The writer, of whom there is one at a time, has a connection of his own."""


class SqliteBackend:
    """A ledger in one file: WAL, full synchronisation, foreign keys.

    The driver's own transactions are off, so that a writer begins with BEGIN IMMEDIATE: it waits
    for the lock before it reads and cannot find, on its first write, that what it read is stale.
    """

    def __init__(self, url: URL) -> None:
        """LedgerError where `url` names no file."""
        if not url.database or url.database.startswith((":memory:", "file:")) or url.query:
            raise LedgerError(
                f"ledger url {url.render_as_string()!r}: expected sqlite:/// and the path of a file"
            )
        self.url = url
        self.path = Path(url.database)
        self._turnstile = Turnstile(self.path)
        self._log = Path(f"{self.path}-wal")
        self._log_limit = LOG_BYTES
        self.reader = _connections(
            url,
            pool_size=KEPT_READERS,
            max_overflow=MOST_READERS - KEPT_READERS,
            pool_timeout=READER_WAIT_SECONDS,
        )
        event.listen(self.reader, "begin", _begin_to_read)
        self.writer = _connections(url, pool_size=1, max_overflow=0)
        event.listen(self.writer, "begin", _begin_to_write)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What a writer holds around its transaction."""
        with self._turnstile.turn():
            yield
            if self._log.exists() and self._log.stat().st_size > self._log_limit:
                self._empty_log()

    def check(self, connection: Connection) -> None:
        """Every SQLite that Python comes with will do."""

    def explain(self, error: DBAPIError) -> str | None:
        """What to do about `error` when the database is the cause, else None."""
        if not isinstance(error.orig, sqlite3.OperationalError):
            return None
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return _ADVICE.get(code)

    def close(self) -> None:
        """Close all connections."""
        self.reader.dispose()
        self.writer.dispose()

    def _empty_log(self) -> None:
        with self.writer.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA busy_timeout = {LOG_WAIT_MILLISECONDS}")
            was_busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}")
        # One long reader, such as a backup, must not cost every writer the wait.
        self._log_limit = self._log.stat().st_size + LOG_BYTES // 4 if was_busy else LOG_BYTES


_ADVICE = {
    sqlite3.SQLITE_BUSY: "another program holds the file locked; close it (an open sqlite3 shell?)",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check the folder and its permissions",
    sqlite3.SQLITE_READONLY: "the file or its folder cannot be written; check their permissions",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk fails or is full; check it",
}


def _connections(url: URL, **pool: float) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_MILLISECONDS / 1000},
        pool_use_lifo=True,
        **pool,
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(raw: sqlite3.Connection, _record: Any) -> None:
    raw.isolation_level = None
    cursor = raw.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_to_read(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    # A reader that wrote would fail as soon as somebody else writes, too: it fails at once.
    driver.execute("PRAGMA query_only = ON")
    connection.exec_driver_sql("BEGIN")


def _begin_to_write(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
