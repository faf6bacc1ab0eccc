"""What is particular to SQLite: opening a connection, beginning a transaction, the triggers."""

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event

BUSY_TIMEOUT_MILLISECONDS = 30_000
WRITES = "ledger_writes"
"""Execution option of a connection whose transaction takes the write lock at once."""

_REFUSE = (
    "CREATE TRIGGER entries_no_{verb} BEFORE {verb} ON entries "
    "BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END"
)

TRIGGERS = tuple(_REFUSE.format(verb=verb) for verb in ("UPDATE", "DELETE"))


def open_engine(url: str) -> Engine:
    """An engine whose connections use WAL, full synchronisation, foreign keys and a busy timeout.

    The driver's own transactions are off, so that a writer begins with BEGIN IMMEDIATE: it waits
    for the lock before it reads and cannot find, on its first write, that what it read is stale.
    """
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MILLISECONDS / 1000})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def create_triggers(connection: Connection) -> None:
    """Make `entries` append-only."""
    for statement in TRIGGERS:
        connection.exec_driver_sql(statement)


def _prepare(raw: sqlite3.Connection, _record: Any) -> None:
    raw.isolation_level = None
    cursor = raw.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
