"""The run: its phase, where its network role listens, and the signs of life of its roles."""

import json
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import Connection, func, select, update

from coordinator.ledger.entries import append
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import entries, roles
from coordinator.ledger.tables import run as _run
from protocol.messages import Phase

Role = Literal["api", "network", "scorer"]
ROLES: tuple[Role, ...] = ("api", "network", "scorer")


@dataclass(frozen=True)
class RunRow:
    """The run as it stands. `maddrs` and `blob_url` are empty until the network role listens."""

    run: str
    coordinator: str
    phase: Phase
    phase_reason: str
    round: int
    maddrs: tuple[str, ...]
    blob_url: str | None
    created_at: float


def create_run(connection: Connection, *, run: str, coordinator: str, now: float) -> None:
    """Name the ledger's one run. Harmless when repeated; LedgerError if it belongs to another."""
    found = find_run(connection)
    if found is None:
        connection.execute(
            _run.insert().values(
                id=1,
                run=run,
                coordinator=coordinator,
                phase="preparing",
                phase_reason="",
                round=1,
                maddrs="[]",
                created_at=now,
            )
        )
        append(connection, "phase", facts={"phase": "preparing", "run": run}, now=now)
    elif (found.run, found.coordinator) != (run, coordinator):
        raise LedgerError(
            f"ledger: holds run {found.run!r} of coordinator {found.coordinator}, "
            f"expected {run!r} of {coordinator}"
        )


def find_run(connection: Connection) -> RunRow | None:
    """The run, None before `create_run`."""
    row = connection.execute(select(_run)).one_or_none()
    if row is None:
        return None
    return RunRow(
        run=row.run,
        coordinator=row.coordinator,
        phase=cast(Phase, row.phase),
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


def phase_since(connection: Connection) -> float:
    """When the run entered its phase."""
    query = select(func.max(entries.c.at)).where(entries.c.kind == "phase")
    moment: float | None = connection.execute(query).scalar()
    return get_run(connection).created_at if moment is None else moment


def set_phase(connection: Connection, phase: Phase, reason: str, now: float) -> None:
    """Say what the run is doing and why. An entry is written when the phase changes."""
    found = get_run(connection)
    if (found.phase, found.phase_reason) == (phase, reason):
        return
    connection.execute(update(_run).values(phase=phase, phase_reason=reason))
    if found.phase != phase:
        append(connection, "phase", facts={"phase": phase, "reason": reason}, now=now)


def set_network(
    connection: Connection, *, maddrs: tuple[str, ...], blob_url: str, now: float
) -> None:
    """Where the network role listens: full multiaddresses, and the base URL of its HTTP port."""
    connection.execute(update(_run).values(maddrs=json.dumps(list(maddrs)), blob_url=blob_url))
    beat_role(connection, "network", now)


def beat_role(connection: Connection, role: Role, now: float) -> None:
    """A role is alive."""
    changed = connection.execute(update(roles).where(roles.c.role == role).values(beat_at=now))
    if changed.rowcount == 0:
        connection.execute(roles.insert().values(role=role, beat_at=now))


def role_beats(connection: Connection) -> dict[str, float]:
    """Role to the time of its last sign of life."""
    return {row.role: row.beat_at for row in connection.execute(select(roles))}
