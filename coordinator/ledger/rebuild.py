"""Proof that the ledger forgot nothing: the state tables, made again from the entries alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from coordinator.ledger.entries import BrokenEntry, Entry, all_entries, verify_chain, write_row
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import STATE_TABLES, entries, metadata

MAX_DIFFERENCES = 20
_BATCH = 2000
_PROGRESS_ENTRIES = 1000


@dataclass(frozen=True)
class Difference:
    """A row that the state tables and the rebuild do not agree on; None: it is not there."""

    table: str
    key: tuple[Any, ...]
    found: dict[str, Any] | None
    expected: dict[str, Any] | None


@dataclass(frozen=True)
class Verdict:
    """What a verification found. `rows` counts those compared, by table."""

    num_entries: int
    head: str
    broken: BrokenEntry | None
    differences: tuple[Difference, ...]
    rows: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether the chain is whole and the tables are what it says."""
        return self.broken is None and not self.differences


def verify_ledger(
    connection: Connection, *, progress: Callable[[int, int], None] | None = None
) -> Verdict:
    """Check the chain, replay it into an empty database, and compare table by table.

    Stops at MAX_DIFFERENCES. `progress` is told (entries replayed, entries in all).
    """
    last = connection.execute(
        select(entries.c.number, entries.c.digest).order_by(entries.c.number.desc()).limit(1)
    ).one_or_none()
    total, head = (last.number, last.digest) if last else (0, "")
    broken = verify_chain(connection)
    if broken is not None:
        return Verdict(total, head, broken, (), {})
    with _empty_database() as rebuilt:
        for entry in all_entries(connection):
            broken = _replay(rebuilt, entry)
            if broken is not None:
                return Verdict(total, head, broken, (), {})
            if progress is not None and entry.number % _PROGRESS_ENTRIES == 0:
                progress(entry.number, total)
        found = _compare(connection, rebuilt)
        counts = {
            table.name: rebuilt.execute(select(func.count()).select_from(table)).scalar_one()
            for table in STATE_TABLES
        }
    return Verdict(total, head, None, tuple(found), counts)


@contextmanager
def _empty_database() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            yield connection
    finally:
        engine.dispose()


def _replay(rebuilt: Connection, entry: Entry) -> BrokenEntry | None:
    try:
        for row in entry.rows:
            write_row(rebuilt, row)
    except (LedgerError, LookupError, SQLAlchemyError) as error:
        return BrokenEntry(entry.number, f"its rows cannot be written: {error}")
    return None


def _compare(connection: Connection, rebuilt: Connection) -> list[Difference]:
    found: list[Difference] = []
    for table in STATE_TABLES:
        for difference in _differences(table, connection, rebuilt):
            found.append(difference)
            if len(found) == MAX_DIFFERENCES:
                return found
    return found


def _differences(table: Table, connection: Connection, rebuilt: Connection) -> Iterator[Difference]:
    """The two tables, walked side by side by key."""
    theirs, ours = _rows(table, connection), _rows(table, rebuilt)
    left, right = next(theirs, None), next(ours, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield Difference(table.name, left[0], left[1], None)
            left = next(theirs, None)
        elif left is None or right[0] < left[0]:
            yield Difference(table.name, right[0], None, right[1])
            right = next(ours, None)
        else:
            if left[1] != right[1]:
                yield Difference(table.name, left[0], left[1], right[1])
            left, right = next(theirs, None), next(ours, None)


def _rows(table: Table, connection: Connection) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    columns = [column for column in table.columns if not column.info.get("volatile")]
    keys = [column.name for column in table.primary_key]
    rows = connection.execute(select(*columns).execution_options(yield_per=_BATCH)).mappings()
    # Sorted here: databases do not agree on the order of text.
    yield from sorted((tuple(row[key] for key in keys), dict(row)) for row in rows)
