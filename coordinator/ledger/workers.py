"""Workers: registration, tokens, used nonces, signs of life, and what the operator said of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, delete, select

from coordinator.ledger.entries import added, changed, record
from coordinator.ledger.prepared import Prepared, insert_into, update_by_key
from coordinator.ledger.tables import nonces, presence, workers
from coordinator.seats import seat_of
from protocol.capability import Capability
from protocol.digests import digest_value

Mark = Literal["ban", "unban", "drain", "undrain"]

_MARKS: dict[Mark, tuple[str, int]] = {
    "ban": ("banned", 1),
    "unban": ("banned", 0),
    "drain": ("draining", 1),
    "undrain": ("draining", 0),
}


@dataclass(frozen=True)
class WorkerRow:
    """A registered worker, as one of its devices: the first, unless it is said otherwise.

    `capability` is what that device offers, `asked_at` when it last asked for work. `waits_since`
    is when it was first told to leave open work to others, None after an offer. `cached` are
    digests of inputs that the worker said it holds. `allowed_at` is its rate limit's.
    """

    worker: str
    name: str
    software_version: str
    capability: Capability
    maddrs: tuple[str, ...]
    token_expires_at: float
    certificate_expires_at: float
    banned: bool
    registered_at: float
    seen_at: float
    asked_at: float | None
    waits_since: float | None = None
    draining: bool = False
    cached: frozenset[str] = frozenset()
    allowed_at: float = 0.0
    device_number: int = 0

    @property
    def seat(self) -> str:
        """The device, by a name that no other has."""
        return seat_of(self.worker, self.device_number)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What is kept of a registration. Of the token, only its SHA-256.

    `allowed_at` is the rate limit's after this call.
    """

    worker: str
    name: str
    software_version: str
    capability: Capability
    maddrs: tuple[str, ...]
    token_digest: str
    token_expires_at: float
    certificate_expires_at: float
    allowed_at: float


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A sign of life: it prolongs the token and uses up some of the rate limit.

    What is None stays as it was.
    """

    token_expires_at: float
    allowed_at: float
    capability: Capability | None = None
    maddrs: tuple[str, ...] | None = None
    cached: tuple[str, ...] | None = None


def use_nonce(connection: Connection, nonce: str, *, expires_at: float) -> bool:
    """Whether the nonce is used for the first time; it is remembered until it expires."""
    if _NONCE.value(connection, nonce=nonce) is not None:
        return False
    _USE_NONCE.run(connection, nonce=nonce, expires_at=expires_at)
    return True


def forget_nonces(connection: Connection, now: float) -> None:
    """Forget used nonces that have expired."""
    connection.execute(delete(nonces).where(nonces.c.expires_at <= now))


def register_worker(connection: Connection, registration: Registration, now: float) -> None:
    """Add a worker, or replace its token: the key is the identity, the old token is void."""
    worker = registration.worker
    values = {
        "worker": worker,
        "name": registration.name,
        "software_version": registration.software_version,
        "registered_at": now,
    }
    current = {
        "capability": registration.capability.model_dump_json(),
        "maddrs": json.dumps(list(registration.maddrs)),
        "token_digest": registration.token_digest,
        "token_expires_at": registration.token_expires_at,
        "certificate_expires_at": registration.certificate_expires_at,
        "seen_at": now,
        "allowed_at": registration.allowed_at,
        "cached": "[]",
    }
    facts = {"capability": digest_value(registration.capability)}
    if _KNOWN.value(connection, worker=worker) is None:
        row = added(workers, banned=0, draining=0, **values)
        record(connection, "register", row, facts=facts, now=now)
        insert_into(presence, ("worker", *current)).run(connection, worker=worker, **current)
        return
    record(connection, "register", changed(workers, **values), facts=facts, now=now)
    update_presence(connection, worker, current)


def mark_worker(
    connection: Connection, worker: str, mark: Mark, *, reason: str, now: float
) -> None:
    """The operator bans or drains a worker, or takes that back. Raises LedgerError if unknown."""
    column, value = _MARKS[mark]
    row = changed(workers, worker=worker, **{column: value})
    record(connection, mark, row, facts={"reason": reason}, now=now)


def worker_of_token(connection: Connection, token_digest: str) -> WorkerRow | None:
    """Whose token has this SHA-256."""
    row = _OF_TOKEN.one(connection, token=token_digest)
    return None if row is None else read_worker(row)


def find_worker(connection: Connection, worker: str) -> WorkerRow | None:
    """The worker with this peer id."""
    row = _BY_ID.one(connection, worker=worker)
    return None if row is None else read_worker(row)


def some_workers(
    connection: Connection, *, after: str = "", limit: int = 1000
) -> tuple[WorkerRow, ...]:
    """Up to `limit` workers whose peer id comes after `after`, by peer id."""
    query = WORKERS.where(workers.c.worker > after).order_by(workers.c.worker).limit(limit)
    return tuple(map(read_worker, connection.execute(query)))


def dialled_workers(connection: Connection, *, since: float, limit: int) -> tuple[str, ...]:
    """An address of each of up to `limit` workers that others can dial, seen last first.

    It is what the worker says of itself; one that names another peer is left out.
    """
    rows = _DIALLED.all(connection, since=since, limit=limit)
    said = ((row.worker, _parse_words(row.maddrs)[0]) for row in rows)
    return tuple(maddr for worker, maddr in said if maddr.endswith(f"/p2p/{worker}"))


def see_worker(connection: Connection, worker: str, sighting: Sighting, now: float) -> None:
    """Note a sign of life, and what came with it."""
    values: dict[str, object] = {
        "seen_at": now,
        "token_expires_at": sighting.token_expires_at,
        "allowed_at": sighting.allowed_at,
    }
    if sighting.capability is not None:
        values["capability"] = sighting.capability.model_dump_json()
    if sighting.maddrs is not None:
        values["maddrs"] = json.dumps(list(sighting.maddrs))
    if sighting.cached is not None:
        values["cached"] = json.dumps(list(sighting.cached))
    update_presence(connection, worker, values)


def set_capability(connection: Connection, worker: str, capability: Capability) -> None:
    """What the worker's machine offers now."""
    update_presence(connection, worker, {"capability": capability.model_dump_json()})


def set_certificate(connection: Connection, worker: str, expires_at: float) -> None:
    """Until when the newest certificate of the worker holds."""
    update_presence(connection, worker, {"certificate_expires_at": expires_at})


def update_presence(connection: Connection, worker: str, values: Mapping[str, Any]) -> None:
    """Change columns of a worker's presence."""
    new = {f"new_{name}": value for name, value in values.items()}
    update_by_key(presence, tuple(values)).run(connection, key_worker=worker, **new)


WORKERS = select(workers, *(c for c in presence.c if c.name != "worker")).join(
    presence, presence.c.worker == workers.c.worker
)


_NONCE = Prepared(select(nonces.c.nonce).where(nonces.c.nonce == bindparam("nonce")))
_USE_NONCE = insert_into(nonces, ("nonce", "expires_at"))
_KNOWN = Prepared(select(workers.c.worker).where(workers.c.worker == bindparam("worker")))
_OF_TOKEN = Prepared(WORKERS.where(presence.c.token_digest == bindparam("token")))
_BY_ID = Prepared(WORKERS.where(workers.c.worker == bindparam("worker")))
_DIALLED = Prepared(
    select(presence.c.worker, presence.c.maddrs)
    .join(workers, workers.c.worker == presence.c.worker)
    .where(presence.c.seen_at >= bindparam("since"))
    .where(presence.c.maddrs != "[]", workers.c.banned == 0)
    .order_by(presence.c.seen_at.desc())
    .limit(bindparam("limit"))
)


@lru_cache(maxsize=16_384)
def parse_capability(body: str) -> Capability:
    """A capability from its JSON text, parsed once."""
    return Capability.model_validate_json(body)


@lru_cache(maxsize=16_384)
def _parse_words(body: str) -> tuple[str, ...]:
    return tuple(json.loads(body))


def read_worker(row: Any) -> WorkerRow:
    """A row of WORKERS, as the worker's first device."""
    return WorkerRow(
        worker=row.worker,
        name=row.name,
        software_version=row.software_version,
        capability=parse_capability(row.capability),
        maddrs=_parse_words(row.maddrs),
        token_expires_at=row.token_expires_at,
        certificate_expires_at=row.certificate_expires_at,
        banned=bool(row.banned),
        draining=bool(row.draining),
        registered_at=row.registered_at,
        seen_at=row.seen_at,
        asked_at=row.asked_at,
        waits_since=row.waits_since,
        cached=frozenset(_parse_words(row.cached)),
        allowed_at=row.allowed_at,
    )
