"""The append-only, hash-chained record of decisions.

Each entry holds the digest of the one before it. A changed, removed or inserted entry breaks the
chain from there on; entries cut off at the end are not noticed by the chain alone.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from coordinator.ledger.tables import entries
from protocol.digests import canonical_bytes, digest_bytes

EntryKind = Literal[
    "register",
    "plan",
    "phase",
    "offer",
    "acknowledge",
    "durable",
    "submit",
    "spare",
    "accept",
    "reject",
    "release",
    "expire",
    "results",
]

FIRST_PREVIOUS = "0" * 64
"""What the first entry holds in the place of a digest."""


@dataclass(frozen=True)
class Entry:
    """One decision: its number from 1, its time, its kind and its facts."""

    number: int
    at: float
    kind: str
    facts: dict[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True)
class BrokenEntry:
    """The first entry at which the chain does not hold, and why."""

    number: int
    reason: str


def append(connection: Connection, kind: EntryKind, *, facts: dict[str, Any], now: float) -> Entry:
    """Add the next entry. `facts` hold JSON values only; ValueError for NaN and infinities."""
    last = connection.execute(
        select(entries.c.number, entries.c.digest).order_by(entries.c.number.desc()).limit(1)
    ).one_or_none()
    number, previous = (last.number + 1, last.digest) if last else (1, FIRST_PREVIOUS)
    entry = Entry(
        number=number,
        at=float(now),
        kind=kind,
        facts=facts,
        previous=previous,
        digest=_digest(number, float(now), kind, facts, previous),
    )
    connection.execute(
        entries.insert().values(
            number=number,
            at=entry.at,
            kind=kind,
            facts=canonical_bytes(facts).decode(),
            previous=previous,
            digest=entry.digest,
        )
    )
    return entry


def read_entries(connection: Connection, *, after: int = 0, limit: int = 1000) -> list[Entry]:
    """Up to `limit` entries with a number above `after`, in order."""
    rows = connection.execute(
        select(entries).where(entries.c.number > after).order_by(entries.c.number).limit(limit)
    )
    return [
        Entry(row.number, row.at, row.kind, json.loads(row.facts), row.previous, row.digest)
        for row in rows
    ]


def verify_chain(connection: Connection) -> BrokenEntry | None:
    """Recompute every digest. None when the whole chain holds, else the first broken entry."""
    previous, expected = FIRST_PREVIOUS, 1
    for row in connection.execute(select(entries).order_by(entries.c.number)):
        if row.number != expected:
            return BrokenEntry(expected, f"missing: the next one is {row.number}")
        if row.previous != previous:
            return BrokenEntry(row.number, "does not name the digest of the entry before it")
        try:
            facts = json.loads(row.facts)
        except ValueError:
            return BrokenEntry(row.number, "its facts are not JSON")
        if _digest(row.number, row.at, row.kind, facts, row.previous) != row.digest:
            return BrokenEntry(row.number, "its content does not give its digest")
        previous, expected = row.digest, row.number + 1
    return None


def _digest(number: int, at: float, kind: str, facts: dict[str, Any], previous: str) -> str:
    body = {"number": number, "at": at, "kind": kind, "facts": facts, "previous": previous}
    return digest_bytes(canonical_bytes(body))
