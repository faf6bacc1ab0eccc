"""Workers as their devices: who is here with which of them, and what each offers and asked for.

Of a worker's first device `presence` holds this, of its others the table `devices`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from coordinator.ledger.prepared import Prepared, insert_into, update_by_key
from coordinator.ledger.tables import IS_LIVE, attempts, devices, presence, workers
from coordinator.ledger.workers import (
    WORKERS,
    WorkerRow,
    find_worker,
    parse_capability,
    read_worker,
    set_capability,
    update_presence,
)
from protocol.capability import Capability


def active_workers(connection: Connection, *, since: float) -> tuple[WorkerRow, ...]:
    """Workers that were seen after `since` or hold a lease, by peer id, each of their devices."""
    busy = select(attempts.c.worker).where(IS_LIVE)
    query = WORKERS.where((presence.c.seen_at >= since) | workers.c.worker.in_(busy))
    found = tuple(map(read_worker, connection.execute(query.order_by(workers.c.worker))))
    return _each_device(found, connection.execute(_DEVICES))


def seen_workers(connection: Connection, *, since: float) -> tuple[WorkerRow, ...]:
    """Workers that were seen at `since` or later, in no order, each of their devices."""
    seen = presence.c.seen_at >= since
    found = tuple(map(read_worker, connection.execute(WORKERS.where(seen))))
    query = _DEVICES.join(presence, presence.c.worker == devices.c.worker).where(seen)
    return _each_device(found, connection.execute(query))


def these_workers(connection: Connection, ids: Iterable[str]) -> tuple[WorkerRow, ...]:
    """The workers with these peer ids, in no order, each of their devices; none for unknown ids."""
    found = tuple(row for one in ids if (row := find_worker(connection, one)) is not None)
    others = (other for row in found for other in _DEVICES_OF.all(connection, worker=row.worker))
    return _each_device(found, others)


def as_device(connection: Connection, worker: WorkerRow, device_number: int) -> WorkerRow:
    """The worker as one of its devices; of one that never asked, only the number is known."""
    if device_number == 0:
        return worker
    for row in _DEVICES_OF.all(connection, worker=worker.worker):
        if row.device_number == device_number:
            return _as_device(worker, row)
    return replace(worker, device_number=device_number, asked_at=None, waits_since=None)


def device_speed(connection: Connection, worker: str, device_number: int) -> float | None:
    """FLOP/s that one of a worker's other devices measured of itself; None: it never asked."""
    for row in _DEVICES_OF.all(connection, worker=worker):
        if row.device_number == device_number:
            return parse_capability(row.capability).flops_per_second
    return None


def see_device(
    connection: Connection, worker: str, device_number: int, capability: Capability
) -> None:
    """What a device of a worker offers now that asks for work."""
    if device_number == 0:
        set_capability(connection, worker, capability)
        return
    body = capability.model_dump_json()
    key = {"key_worker": worker, "key_device_number": device_number}
    if not update_by_key(devices, ("capability",)).run(connection, **key, new_capability=body):
        insert_into(devices, ("worker", "device_number", "capability")).run(
            connection, worker=worker, device_number=device_number, capability=body
        )


def set_asked(
    connection: Connection,
    worker: str,
    at: float | None,
    *,
    waits_since: float | None = None,
    device_number: int = 0,
) -> None:
    """When a device last asked for work, None: it is not expected to ask again; and since when
    it is told to leave open work to others, None: it is not."""
    if device_number == 0:
        update_presence(connection, worker, {"asked_at": at, "waits_since": waits_since})
        return
    update_by_key(devices, ("asked_at", "waits_since")).run(
        connection,
        key_worker=worker,
        key_device_number=device_number,
        new_asked_at=at,
        new_waits_since=waits_since,
    )


_DEVICES = select(devices).order_by(devices.c.worker, devices.c.device_number)
_DEVICES_OF = Prepared(_DEVICES.where(devices.c.worker == bindparam("worker")))


def _each_device(found: Iterable[WorkerRow], others: Iterable[Any]) -> tuple[WorkerRow, ...]:
    """Every worker followed by its other devices."""
    of_worker: dict[str, list[Any]] = {}
    for row in others:
        of_worker.setdefault(row.worker, []).append(row)
    return tuple(
        one
        for worker in found
        for one in (worker, *(_as_device(worker, row) for row in of_worker.get(worker.worker, ())))
    )


def _as_device(worker: WorkerRow, row: Any) -> WorkerRow:
    return replace(
        worker,
        device_number=row.device_number,
        capability=parse_capability(row.capability),
        asked_at=row.asked_at,
        waits_since=row.waits_since,
    )
