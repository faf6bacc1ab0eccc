"""The run: its phase, where its network role listens, and the signs of life of its roles."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from sqlalchemy import Connection, select, update

from coordinator.ledger.entries import added, changed, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.tables import roles
from coordinator.ledger.tables import run as _run
from protocol.owndata import OwnDataTerms
from protocol.views import Phase

Role = Literal["api", "network", "scorer"]
ROLES: tuple[Role, ...] = ("api", "network", "scorer")

_THE_RUN = Prepared(select(_run))
_ONLY = 1
"""A ledger holds one run."""


@dataclass(frozen=True)
class RunRow:
    """The run as it stands. Paused, it makes no new offers.

    `maddrs` and `blob_url` are empty until the network role listens.
    """

    run: str
    coordinator: str
    phase: Phase
    phase_since: float
    phase_reason: str
    paused: bool
    round: int
    maddrs: tuple[str, ...]
    blob_url: str | None
    created_at: float


def create_run(connection: Connection, *, run: str, coordinator: str, now: float) -> None:
    """Name the ledger's one run. Harmless when repeated; LedgerError if it belongs to another."""
    found = find_run(connection)
    if found is None:
        row = added(
            _run,
            id=_ONLY,
            run=run,
            coordinator=coordinator,
            phase="preparing",
            phase_since=now,
            round=1,
            paused=0,
            created_at=now,
        )
        record(connection, "run", row, now=now)
    elif (found.run, found.coordinator) != (run, coordinator):
        raise LedgerError(
            f"ledger: holds run {found.run!r} of coordinator {found.coordinator}, "
            f"expected {run!r} of {coordinator}"
        )


def find_run(connection: Connection) -> RunRow | None:
    """The run, None before `create_run`."""
    row = _THE_RUN.one(connection)
    if row is None:
        return None
    return RunRow(
        run=row.run,
        coordinator=row.coordinator,
        phase=cast(Phase, row.phase),
        phase_since=row.phase_since,
        paused=bool(row.paused),
        phase_reason=row.phase_reason,
        round=row.round,
        maddrs=tuple(json.loads(row.maddrs)),
        blob_url=row.blob_url,
        created_at=row.created_at,
    )


def get_run(connection: Connection) -> RunRow:
    """The run. Raises LedgerError before `create_run`."""
    found = find_run(connection)
    if found is None:
        raise LedgerError("ledger: holds no run, expected create_run first")
    return found


def set_phase(connection: Connection, phase: Phase, reason: str, now: float) -> None:
    """Say what the run is doing and why. An entry is written when the phase changes."""
    found = get_run(connection)
    if (found.phase, found.phase_reason) == (phase, reason):
        return
    if found.phase != phase:
        row = changed(_run, id=_ONLY, phase=phase, phase_since=now)
        record(connection, "phase", row, facts={"reason": reason}, now=now)
    connection.execute(update(_run).values(phase_reason=reason))


def set_round(connection: Connection, number: int, *, now: float) -> None:
    """The round that experts are trained in, or that is to be. Harmless when repeated."""
    if get_run(connection).round != number:
        record(connection, "round", changed(_run, id=_ONLY, round=number), now=now)


def set_paused(connection: Connection, paused: bool, *, reason: str, now: float) -> None:
    """The operator stops or resumes new offers; running leases go on. Harmless when repeated."""
    if get_run(connection).paused == paused:
        return
    row = changed(_run, id=_ONLY, paused=int(paused))
    record(connection, "pause" if paused else "resume", row, facts={"reason": reason}, now=now)


def set_network(
    connection: Connection, *, maddrs: tuple[str, ...], blob_url: str, now: float
) -> None:
    """Where the network role listens: full multiaddresses, and the base URL of its HTTP port."""
    connection.execute(update(_run).values(maddrs=json.dumps(list(maddrs)), blob_url=blob_url))
    beat_role(connection, "network", now)


def set_own_data_terms(connection: Connection, terms: OwnDataTerms | None, *, now: float) -> None:
    """What the run does with own data; None: it takes none. Harmless when repeated."""
    if own_data_terms(connection) != terms:
        body = None if terms is None else terms.model_dump_json()
        record(connection, "own-terms", changed(_run, id=_ONLY, own_data=body), now=now)


def own_data_terms(connection: Connection) -> OwnDataTerms | None:
    """What the run does with own data; None: it takes none, or its seeds are not planned yet."""
    row = _THE_RUN.one(connection)
    return None if row is None or row.own_data is None else _parse_terms(row.own_data)


@lru_cache(maxsize=4)
def _parse_terms(body: str) -> OwnDataTerms:
    return OwnDataTerms.model_validate_json(body)


def beat_role(connection: Connection, role: Role, now: float) -> None:
    """A role is alive."""
    changed = connection.execute(update(roles).where(roles.c.role == role).values(beat_at=now))
    if changed.rowcount == 0:
        connection.execute(roles.insert().values(role=role, beat_at=now))


def role_beats(connection: Connection) -> dict[str, float]:
    """Role to the time of its last sign of life."""
    return {row.role: row.beat_at for row in connection.execute(select(roles))}
