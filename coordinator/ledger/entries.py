"""The append-only, hash-chained record of decisions: a redo log of the state tables.

An entry names the decision, its facts, and the rows that it wrote. `record` writes both together,
so replaying the entries in order gives the state tables again. Each entry holds the digest of the
one before it: a changed, removed or inserted entry breaks the chain from there on. Entries cut off
at the end are not noticed by the chain alone; a receipt that names a later entry proves it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Table, bindparam, select

from coordinator.ledger.errors import LedgerError
from coordinator.ledger.prepared import Prepared, insert_into, update_by_key
from coordinator.ledger.tables import STATE_TABLES, entries
from protocol.digests import canonical_bytes, digest_bytes

EntryKind = Literal[
    "run",
    "phase",
    "round",
    "pause",
    "resume",
    "shard",
    "classify",
    "plan",
    "make",
    "register",
    "offer",
    "acknowledge",
    "begin",
    "announce",
    "durable",
    "supersede",
    "submit",
    "spare",
    "accept",
    "reject",
    "release",
    "expire",
    "fail",
    "cancel",
    "retry",
    "ban",
    "unban",
    "drain",
    "undrain",
    "evaluate",
    "results",
    "own-terms",
    "own-offer",
    "own-report",
]

FIRST_PREVIOUS = "0" * 64
"""What the first entry holds in the place of a digest."""

_BATCH = 2000
_ADD = insert_into(entries, ("number", "at", "kind", "body", "previous", "digest"))
_AFTER = Prepared(
    select(entries)
    .where(entries.c.number > bindparam("after"))
    .order_by(entries.c.number)
    .limit(bindparam("most"))
)
_LAST = Prepared(
    select(entries.c.number, entries.c.digest).order_by(entries.c.number.desc()).limit(1)
)
_TABLES = {table.name: table for table in STATE_TABLES}


@dataclass(frozen=True)
class Row:
    """What an entry writes into one row of a state table: a `new` row, or columns of one by key."""

    table: str
    values: Mapping[str, Any]
    new: bool = False


@dataclass(frozen=True)
class Entry:
    """One decision: its number from 1, its time, its kind, its facts, and the rows it wrote."""

    number: int
    at: float
    kind: str
    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    previous: str
    digest: str


@dataclass(frozen=True)
class BrokenEntry:
    """The first entry at which the chain does not hold, and why."""

    number: int
    reason: str


def added(table: Table, **values: Any) -> Row:
    """A new row."""
    return Row(table.name, values, new=True)


def changed(table: Table, **values: Any) -> Row:
    """Other values for some columns of the row whose key is among `values`."""
    return Row(table.name, values)


def record(
    connection: Connection,
    kind: EntryKind,
    *rows: Row,
    facts: Mapping[str, Any] | None = None,
    now: float,
) -> int:
    """Write the rows and the entry that holds them; returns its number.

    Values are JSON values; ValueError for NaN and infinities. Raises LedgerError when a row to be
    changed is not there.
    """
    number, previous = _tail(connection)
    body = _body(facts or {}, rows)
    at = float(now)
    _ADD.run(
        connection,
        number=number,
        at=at,
        kind=kind,
        body=body,
        previous=previous,
        digest=_digest(number, at, kind, body, previous),
    )
    for row in rows:
        write_row(connection, row)
    return number


def last_number(connection: Connection) -> int:
    """The number of the newest entry; 0 before the first."""
    return _tail(connection)[0] - 1


def next_number(connection: Connection) -> int:
    """The number that the next entry of this transaction gets."""
    return _tail(connection)[0]


def write_row(connection: Connection, row: Row) -> None:
    """Write one row of an entry. Raises LedgerError for an unknown table or a missing row."""
    table = _TABLES.get(row.table)
    if table is None:
        raise LedgerError(f"entry: table {row.table!r}, expected one of {sorted(_TABLES)}")
    values = row.values
    if row.new:
        insert_into(table, tuple(values)).run(connection, **values)
        return
    key = {column.name: values[column.name] for column in table.primary_key}
    names = tuple(name for name in values if name not in key)
    given = {f"key_{name}": value for name, value in key.items()}
    given |= {f"new_{name}": values[name] for name in names}
    if update_by_key(table, names).run(connection, **given) != 1:
        raise LedgerError(f"{row.table} {key}: there is no such row to change")


def read_entries(connection: Connection, *, after: int = 0, limit: int = 1000) -> list[Entry]:
    """Up to `limit` entries with a number above `after`, in order."""
    rows = _AFTER.all(connection, after=after, most=limit)
    return [_entry(row, json.loads(row.body)) for row in rows]


def all_entries(connection: Connection) -> Iterator[Entry]:
    """Every entry in order, read some at a time."""
    last = 0
    while batch := read_entries(connection, after=last, limit=_BATCH):
        yield from batch
        last = batch[-1].number


def verify_chain(connection: Connection) -> BrokenEntry | None:
    """Recompute every digest. None when the whole chain holds, else the first broken entry."""
    previous, expected = FIRST_PREVIOUS, 1
    query = select(entries).order_by(entries.c.number).execution_options(yield_per=_BATCH)
    for row in connection.execute(query):
        if row.number != expected:
            return BrokenEntry(expected, f"missing: the next one is {row.number}")
        if row.previous != previous:
            return BrokenEntry(row.number, "does not name the digest of the entry before it")
        if _digest(row.number, row.at, row.kind, row.body, row.previous) != row.digest:
            return BrokenEntry(row.number, "its content does not give its digest")
        try:
            _entry(row, json.loads(row.body))
        except (ValueError, LookupError, TypeError):
            return BrokenEntry(row.number, "its body is not facts and rows as JSON")
        previous, expected = row.digest, row.number + 1
    return None


def _tail(connection: Connection) -> tuple[int, str]:
    last = _LAST.one(connection)
    return (last.number + 1, last.digest) if last else (1, FIRST_PREVIOUS)


def _body(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    body: dict[str, object] = {
        "facts": dict(facts),
        "rows": [[row.table, row.new, dict(row.values)] for row in rows],
    }
    return canonical_bytes(body).decode()


def _entry(row: Any, body: dict[str, Any]) -> Entry:
    return Entry(
        number=row.number,
        at=row.at,
        kind=row.kind,
        facts=body["facts"],
        rows=tuple(Row(table, values, bool(new)) for table, new, values in body["rows"]),
        previous=row.previous,
        digest=row.digest,
    )


def _digest(number: int, at: float, kind: str, body: str, previous: str) -> str:
    head = {"number": number, "at": at, "kind": kind, "body": body, "previous": previous}
    return digest_bytes(canonical_bytes(head))
