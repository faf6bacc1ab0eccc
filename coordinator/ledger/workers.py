"""Workers: registration, tokens, nonces and signs of life."""

import json
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, select, update

from coordinator.ledger.entries import append
from coordinator.ledger.tables import LIVE_ATTEMPTS, attempts, nonces, workers
from protocol.capability import Capability
from protocol.digests import digest_value


@dataclass(frozen=True)
class WorkerRow:
    """A registered worker. `asked_at` is when it last asked for work.

    `waits_since` is when it was first told to leave open work to others, None after an offer.
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


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What is kept of a registration. Of the token, only its SHA-256."""

    worker: str
    name: str
    software_version: str
    capability: Capability
    maddrs: tuple[str, ...]
    token_digest: str
    token_expires_at: float
    certificate_expires_at: float


def add_nonce(connection: Connection, nonce: str, *, expires_at: float, now: float) -> None:
    """Remember a nonce until it is used or runs out; forget those that ran out."""
    connection.execute(delete(nonces).where(nonces.c.expires_at <= now))
    connection.execute(nonces.insert().values(nonce=nonce, expires_at=expires_at))


def use_nonce(connection: Connection, nonce: str, now: float) -> bool:
    """Whether the nonce was issued, still lives and is used for the first time."""
    alive = (nonces.c.nonce == nonce) & (nonces.c.expires_at > now)
    return connection.execute(delete(nonces).where(alive)).rowcount == 1


def register_worker(connection: Connection, registration: Registration, now: float) -> None:
    """Add a worker, or replace its token: the key is the identity, the old token is void."""
    values = {
        "name": registration.name,
        "software_version": registration.software_version,
        "capability": registration.capability.model_dump_json(),
        "maddrs": json.dumps(list(registration.maddrs)),
        "token_digest": registration.token_digest,
        "token_expires_at": registration.token_expires_at,
        "certificate_expires_at": registration.certificate_expires_at,
        "registered_at": now,
        "seen_at": now,
    }
    known = workers.c.worker == registration.worker
    if connection.execute(update(workers).where(known).values(**values)).rowcount == 0:
        connection.execute(workers.insert().values(worker=registration.worker, banned=0, **values))
    append(
        connection,
        "register",
        facts={
            "worker": registration.worker,
            "software_version": registration.software_version,
            "capability": digest_value(registration.capability),
        },
        now=now,
    )


def worker_of_token(connection: Connection, token_digest: str) -> WorkerRow | None:
    """Whose token has this SHA-256."""
    row = connection.execute(
        select(workers).where(workers.c.token_digest == token_digest)
    ).one_or_none()
    return None if row is None else _worker(row)


def find_worker(connection: Connection, worker: str) -> WorkerRow | None:
    """The worker with this peer id."""
    row = connection.execute(select(workers).where(workers.c.worker == worker)).one_or_none()
    return None if row is None else _worker(row)


def all_workers(connection: Connection) -> tuple[WorkerRow, ...]:
    """Every worker that ever registered, by peer id."""
    return tuple(map(_worker, connection.execute(select(workers).order_by(workers.c.worker))))


def see_worker(connection: Connection, worker: str, *, token_expires_at: float, now: float) -> None:
    """A sign of life; it prolongs the token."""
    connection.execute(
        update(workers)
        .where(workers.c.worker == worker)
        .values(seen_at=now, token_expires_at=token_expires_at)
    )


def set_capability(connection: Connection, worker: str, capability: Capability) -> None:
    """What the worker's machine offers now."""
    connection.execute(
        update(workers)
        .where(workers.c.worker == worker)
        .values(capability=capability.model_dump_json())
    )


def set_maddrs(connection: Connection, worker: str, maddrs: tuple[str, ...]) -> None:
    """Where the worker's peer listens; empty when it cannot be dialled."""
    connection.execute(
        update(workers).where(workers.c.worker == worker).values(maddrs=json.dumps(list(maddrs)))
    )


def set_asked(connection: Connection, worker: str, at: float | None) -> None:
    """When the worker last asked for work; None: it is not expected to ask again."""
    connection.execute(update(workers).where(workers.c.worker == worker).values(asked_at=at))


def set_waits_since(connection: Connection, worker: str, since: float | None) -> None:
    """Since when the worker is told to leave open work to others; None: it is not."""
    connection.execute(update(workers).where(workers.c.worker == worker).values(waits_since=since))


def active_workers(connection: Connection, *, since: float) -> tuple[WorkerRow, ...]:
    """Workers that were seen after `since` or hold a lease, by peer id."""
    busy = select(attempts.c.worker).where(attempts.c.state.in_(LIVE_ATTEMPTS))
    query = select(workers).where((workers.c.seen_at >= since) | workers.c.worker.in_(busy))
    return tuple(map(_worker, connection.execute(query.order_by(workers.c.worker))))


def set_certificate(connection: Connection, worker: str, expires_at: float) -> None:
    """Until when the newest certificate of the worker holds."""
    connection.execute(
        update(workers).where(workers.c.worker == worker).values(certificate_expires_at=expires_at)
    )


def _worker(row: Row[tuple[object, ...]]) -> WorkerRow:
    return WorkerRow(
        worker=row.worker,
        name=row.name,
        software_version=row.software_version,
        capability=Capability.model_validate_json(row.capability),
        maddrs=tuple(json.loads(row.maddrs)),
        token_expires_at=row.token_expires_at,
        certificate_expires_at=row.certificate_expires_at,
        banned=bool(row.banned),
        registered_at=row.registered_at,
        seen_at=row.seen_at,
        asked_at=row.asked_at,
        waits_since=row.waits_since,
    )
