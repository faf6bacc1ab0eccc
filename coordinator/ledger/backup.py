"""A copy of a ledger that is in use: one state of it, proved to be whole before it gets its name.

Writers go on meanwhile. A copy of an embedded ledger is a ledger, to be opened as one. A copy of
one that a server holds is an archive of pg_dump, to be restored with pg_restore.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, select, text
from sqlalchemy.exc import DBAPIError

from coordinator.ledger import Ledger
from coordinator.ledger.entries import FIRST_PREVIOUS, verify_chain
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import entries
from shared.files import sync_folder

PAGES_A_STEP = 2000

DRAFT_MODE = 0o600
"""A ledger holds what workers said of themselves: its copies are the operator's alone."""


@dataclass(frozen=True)
class BackupReport:
    """A finished copy: its file, its size, and the last entry in it (number 0: none yet)."""

    path: Path
    num_bytes: int
    last_entry: int
    last_digest: str


def backup(ledger: Ledger, target: Path, progress: Callable[[float], None]) -> BackupReport:
    """Copy `ledger` to the new file `target`; `progress` gets the share that is done, 0 to 1.

    Raises LedgerError when `target` exists or cannot be written, when there is no ledger, when
    the copy does not hold what the ledger held, or when pg_dump is needed and fails.
    """
    if ledger.path is not None and not ledger.path.exists():
        raise LedgerError(f"ledger {ledger.path}: there is no such file")
    _refuse_existing(target)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, DRAFT_MODE))
        with ledger.read() as connection:
            number, digest = _last(connection)
            if ledger.path is None:
                _refuse_broken(connection, ledger.url)
                _dump(connection, ledger.url, draft)
            else:
                _copy(connection, draft, progress)
        if ledger.path is not None:
            _verify(draft, (number, digest))
        _sync(draft)
        _refuse_existing(target)
        draft.rename(target)
        sync_folder(target.parent)
    except DBAPIError as error:
        raise LedgerError(f"backup {target}: {error.orig}") from error
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"backup {target}: {error}") from error
    finally:
        for path in (draft, *(draft.with_name(draft.name + end) for end in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)
    progress(1.0)
    return BackupReport(target, target.stat().st_size, number, digest)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise LedgerError(f"backup {target}: exists already, expected a new name")


def _last(connection: Connection) -> tuple[int, str]:
    query = select(entries.c.number, entries.c.digest).order_by(entries.c.number.desc()).limit(1)
    last = connection.execute(query).one_or_none()
    return (last.number, last.digest) if last else (0, FIRST_PREVIOUS)


def _copy(connection: Connection, draft: Path, progress: Callable[[float], None]) -> None:
    # The read transaction pins one state. Without it SQLite would begin anew after every write.
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)

    def step(_status: int, remaining: int, total: int) -> None:
        progress(1.0 - remaining / total if total else 1.0)

    with contextlib.closing(sqlite3.connect(draft)) as copy:
        source.backup(copy, pages=PAGES_A_STEP, progress=step)


def _verify(draft: Path, last: tuple[int, str]) -> None:
    with contextlib.closing(sqlite3.connect(draft)) as raw:
        found = raw.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise LedgerError(f"backup: the copy is damaged: {found}; check the disks")
    copy = Ledger(f"sqlite:///{draft}")
    try:
        with copy.read() as connection:
            _refuse_broken(connection, copy.url)
            if _last(connection) != last:
                raise LedgerError(
                    f"backup: the copy ends with entry {_last(connection)}, expected {last}"
                )
    finally:
        copy.close()
    with contextlib.closing(sqlite3.connect(draft)) as raw:
        # So that the copy is one file, also when it is only read.
        raw.execute("PRAGMA journal_mode = DELETE")


def _refuse_broken(connection: Connection, url: URL) -> None:
    broken = verify_chain(connection)
    if broken is not None:
        raise LedgerError(f"ledger {url}: entry {broken.number}: {broken.reason}")


def _dump(connection: Connection, url: URL, draft: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise LedgerError(
            "backup: this ledger is in PostgreSQL and there is no pg_dump here: install "
            "PostgreSQL's client programs, or run pg_dump --format=custom where they are"
        )
    snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
    query = {key: value for key, value in url.query.items() if isinstance(value, str)}
    login = {"user": url.username, "host": url.host, "port": url.port, "dbname": url.database}
    address = make_conninfo(**{**{key: str(v) for key, v in login.items() if v}, **query})
    command = [
        program,
        "--format=custom",
        "--no-password",
        f"--snapshot={snapshot}",
        f"--file={draft}",
        f"--dbname={address}",
    ]
    # Not on the command line, which every user of the machine may read.
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **secret}
    )
    if done.returncode:
        raise LedgerError(f"backup: pg_dump failed: {done.stderr.strip()}")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
