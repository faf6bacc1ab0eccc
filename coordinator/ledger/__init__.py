"""The ledger: one database that the api, the network and the scorer role share.

errors       LedgerError and its kinds
tables       what is kept
schema       bringing a database to the newest tables, by the migrations
sqlite       what is particular to SQLite
turnstile    whose turn it is to write to SQLite's file
postgres     what is particular to PostgreSQL
writer       many writes in one commit, for the api
backup       a copy of a ledger that is in use
entries      the append-only, hash-chained record of decisions
run          the run itself, its phase, its roles and where its network role listens
domains      domains and their shards
workers      registration, tokens, nonces, signs of life
assignments  work to do: adding it, reading it, writing back what the lifecycle decided
making       checkpoints that the coordinator makes itself
offering     offers of assignments to devices
starting     their acknowledgement, and the step that training goes on from
renewing     heartbeats of a lease's holder
submitting   what a lease's holder hands in
releasing    leases that are given back
decisions    what these have in common
expiry       leases that run out
operations   what the operator may do to workers and assignments
requests     answers to repeated requests
checkpoints  what workers announced, what is durable, what is wanted
visibility   who may read or upload a blob
verifying    the decision on a submission, and what it earns
accepted     accepted checkpoints
results      evaluations and result tables
snapshot     all that decides what the run does next
views        what the public routes show
queries      all of the above under one name

Every query takes the connection first and `now` where it needs the time. None of them commits: the
caller owns the transaction, so that a decision and its entry are written together.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from coordinator.ledger import schema
from coordinator.ledger.errors import LedgerBusy, LedgerError, LedgerUnavailable
from coordinator.ledger.postgres import PostgresBackend
from coordinator.ledger.sqlite import SqliteBackend

__all__ = ["Ledger", "LedgerBusy", "LedgerError", "LedgerUnavailable"]

_BACKENDS: dict[str, type[SqliteBackend] | type[PostgresBackend]] = {
    "sqlite": SqliteBackend,
    "postgresql+psycopg": PostgresBackend,
}


class Ledger:
    """One ledger, safe to use from several threads and from several processes.

    All writers follow each other, in every process, and none of them starves. What a reader sees
    is one state, and no number of readers keeps a writer waiting. Errors of the database that are
    not the caller's become LedgerUnavailable; where too many read at once, it is LedgerBusy.
    """

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy has it: sqlite:////srv/run/ledger.sqlite, or postgresql+psycopg://.

        Touches nothing. Raises LedgerError for any other url.
        """
        try:
            parsed = make_url(url)
            backend = _BACKENDS[parsed.drivername]
        except (ArgumentError, KeyError, ValueError):
            raise LedgerError(
                f"ledger url {_without_password(url)!r}: expected sqlite:/// and the path of a "
                "file, or postgresql+psycopg://user@host/database"
            ) from None
        self._backend = backend(parsed)

    @property
    def url(self) -> URL:
        """Where the ledger is. As text, its password is hidden."""
        return self._backend.url

    @property
    def path(self) -> Path | None:
        """The file of an embedded ledger; None for one that a server holds."""
        return self._backend.path if isinstance(self._backend, SqliteBackend) else None

    def create(self) -> None:
        """Make the tables where there are none, and bring older ones to the newest schema.

        Raises LedgerError for a ledger of a newer version or a foreign database.
        """
        with self.begin() as connection:
            self._backend.check(connection)
            schema.upgrade(connection, name=str(self.url))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A write transaction: committed at the end, rolled back on an exception."""
        with (
            self._explained(),
            self._backend.turn(),
            self._backend.writer.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one consistent state, whatever others write meanwhile."""
        with (
            self._explained(),
            self._backend.reader.connect() as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._backend.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except NoConnectionFree as error:
            raise LedgerBusy(f"ledger {self.url}: all of its connections are in use") from error
        except DBAPIError as error:
            advice = self._backend.explain(error)
            if advice is None:
                raise
            reason = str(error.orig).strip().splitlines()[0]
            raise LedgerUnavailable(f"ledger {self.url}: {reason}: {advice}") from error


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
