"""The ledger: one database that the api, the network and the scorer role share.

errors       LedgerError
tables       what is kept
sqlite       how SQLite is opened; the only SQLite-specific statements
entries      the append-only, hash-chained record of decisions
run          the run itself, its phase, its roles and where its network role listens
domains      domains and their shards
workers      registration, tokens, nonces, signs of life
assignments  work to do: adding it, reading it, writing back what the lifecycle decided
leases       offer, acknowledge, renew, submit, release, expire
requests     answers to repeated requests
checkpoints  what workers announced, what is durable, what is wanted
visibility   who may read or upload a blob
results      verification, accepted experts, evaluations, result tables
views        what the public routes show
queries      all of the above under one name

Every query takes the connection first and `now` where it needs the time. None of them commits: the
caller owns the transaction, so that a decision and its entry are written together.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, inspect, select

from coordinator.ledger import sqlite, tables
from coordinator.ledger.errors import LedgerError

__all__ = ["Ledger", "LedgerError"]


class Ledger:
    """One ledger, safe to use from several threads and, as a file, from several processes."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy has it, such as sqlite:////srv/run/ledger.sqlite. Touches nothing."""
        if not url.startswith("sqlite:///") or url == "sqlite:///":
            raise LedgerError(f"ledger url {url!r}: expected sqlite:/// and the path of a file")
        self._engine = sqlite.open_engine(url)
        # One writer of this process at a time: SQLite's own waiting is by polling and not fair.
        self._writer = threading.Lock()

    def create(self) -> None:
        """Make the tables and triggers where there are none.

        Raises LedgerError for a ledger of another schema version or a foreign database.
        """
        with self.begin() as connection:
            found = set(inspect(connection).get_table_names())
            if tables.schema.name in found:
                version = connection.execute(select(tables.schema.c.version)).scalar()
                if version != tables.SCHEMA_VERSION:
                    raise LedgerError(
                        f"ledger {self._engine.url.database}: schema version {version}, "
                        f"expected {tables.SCHEMA_VERSION}"
                    )
                return
            if found:
                raise LedgerError(
                    f"ledger {self._engine.url.database}: holds other tables {sorted(found)[:3]}, "
                    "expected an empty database or a ledger"
                )
            tables.metadata.create_all(connection)
            sqlite.create_triggers(connection)
            connection.execute(tables.schema.insert().values(version=tables.SCHEMA_VERSION))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A write transaction: committed at the end, rolled back on an exception."""
        with self._writer, self._engine.connect() as connection:
            writing = connection.execution_options(**{sqlite.WRITES: True})
            with writing.begin():
                yield writing

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one consistent state, whatever others write meanwhile."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
