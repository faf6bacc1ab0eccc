"""Checkpoints: what workers announced, what the coordinator holds, what it wants to be uploaded.

announced   named by a lease's holder; the network role is to collect it
durable     the coordinator holds the manifest and every file
superseded  no longer needed; its blobs may go
spare       an expert handed in under an old fencing number; never collected
refused     its files are not what they must be
accepted, rejected, inconclusive    a durable expert after its verification

What collecting one leads to is in `coordinator.ledger.collection`.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, or_, select

from coordinator.ledger.assignments import parse_spec
from coordinator.ledger.entries import Row, added, changed, next_number, record
from coordinator.ledger.prepared import Prepared, update_by_key
from coordinator.ledger.tables import (
    assignments,
    checkpoint_blobs,
    checkpoints,
    presence,
    shards,
    specs,
    wanted,
)
from protocol.blobs import BlobRef
from protocol.manifests import CheckpointKind, CheckpointManifest
from protocol.specs import ExpertSpec

HELD = ("durable", "accepted", "inconclusive")
"""States of a checkpoint whose blobs are kept."""

_DECIDED_SHOWN = 64

_NAMED_AGAIN = {
    "training": ("announced", "superseded"),
    "expert": (
        "announced",
        "durable",
        "superseded",
        "spare",
        "refused",
        "rejected",
        "inconclusive",
    ),
}
"""States of a checkpoint that is collected anew when it is named under a new lease."""


@dataclass(frozen=True)
class CheckpointRow:
    """A manifest that a lease's holder named. `worker_maddrs` is empty if it cannot be dialled."""

    checkpoint_id: int
    assignment: str
    fencing: int
    worker: str
    worker_maddrs: tuple[str, ...]
    kind: CheckpointKind
    step: int
    manifest: BlobRef
    spec: ExpertSpec
    state: str
    announced_at: float


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """A worker names the manifest of a checkpoint under its lease."""

    assignment: str
    worker: str
    fencing: int
    kind: CheckpointKind
    step: int
    manifest: BlobRef


@dataclass(frozen=True)
class Resume:
    """The checkpoint that the next attempt goes on from, and the attempt that wrote it."""

    manifest: CheckpointManifest
    assignment: str
    fencing: int


def announced(connection: Connection, announcement: Announcement, now: float) -> list[Row]:
    """What the next entry writes so that the network role collects this checkpoint.

    Nothing when it was named before under this lease. A training checkpoint takes the place of that
    of the assignment that nobody collected yet, so there is at most one. What was named before,
    under a lease that ended, counts under the new one: equal training gives equal bits. What
    another worker named is its own: a manifest's digest is public and proves nothing.
    """
    found = _NAMED_BEFORE.one(
        connection,
        assignment=announcement.assignment,
        worker=announcement.worker,
        kind=announcement.kind,
        manifest=announcement.manifest.digest,
    )
    older = _waiting(connection, announcement) if announcement.kind == "training" else []
    if found is None:
        number = next_number(connection)
        return [*superseded(older, now), _named(announcement, number, "announced", now)]
    renamed = (
        found.fencing != announcement.fencing and found.state in _NAMED_AGAIN[announcement.kind]
    )
    if not renamed and found.state != "announced":
        return []
    _SET_ANNOUNCED_AT.run(connection, key_checkpoint_id=found.checkpoint_id, new_announced_at=now)
    if not renamed:
        return []
    again = {"state": "announced", "fencing": announcement.fencing}
    others = [one for one in older if one != found.checkpoint_id]
    return [
        *superseded(others, now),
        changed(checkpoints, checkpoint_id=found.checkpoint_id, **again),
    ]


def keep_spare(connection: Connection, announcement: Announcement, now: float) -> None:
    """Note an expert that came under an old fencing number, once for each attempt."""
    known = connection.execute(
        select(checkpoints.c.checkpoint_id).where(
            checkpoints.c.assignment == announcement.assignment,
            checkpoints.c.worker == announcement.worker,
            checkpoints.c.kind == "expert",
            or_(
                checkpoints.c.fencing == announcement.fencing,
                checkpoints.c.manifest_digest == announcement.manifest.digest,
            ),
        )
    ).first()
    if known is None:
        row = _named(announcement, next_number(connection), "spare", now)
        record(connection, "spare", row, now=now)


def announced_checkpoints(connection: Connection) -> list[CheckpointRow]:
    """What the network role is to collect: submissions first, then training checkpoints by age."""
    query = _SELECT.where(checkpoints.c.state == "announced").order_by(
        checkpoints.c.kind, checkpoints.c.announced_at
    )
    return [_checkpoint(row) for row in connection.execute(query)]


def find_checkpoint(connection: Connection, checkpoint_id: int) -> CheckpointRow | None:
    """The checkpoint with this id."""
    row = connection.execute(
        _SELECT.where(checkpoints.c.checkpoint_id == checkpoint_id)
    ).one_or_none()
    return None if row is None else _checkpoint(row)


def want_blobs(
    connection: Connection,
    checkpoint_id: int,
    refs: tuple[BlobRef, ...] | list[BlobRef],
    now: float,
) -> None:
    """Ask the worker of a checkpoint to upload these blobs; empty: none any more."""
    connection.execute(delete(wanted).where(wanted.c.checkpoint_id == checkpoint_id))
    for ref in {ref.digest: ref for ref in refs}.values():
        connection.execute(
            wanted.insert().values(
                checkpoint_id=checkpoint_id, digest=ref.digest, size=ref.size, since=now
            )
        )


def wanted_from(connection: Connection, worker: str) -> tuple[BlobRef, ...]:
    """The blobs that this worker is asked to upload."""
    found = {row.digest: row.size for row in _WANTED_FROM.all(connection, worker=worker)}
    return tuple(BlobRef(digest=digest, size=size) for digest, size in found.items())


def held_manifests(connection: Connection, worker: str) -> tuple[str, ...]:
    """Digests of this worker's newest manifests that the coordinator held, files included."""
    return tuple(row.manifest_digest for row in _HELD_FROM.all(connection, worker=worker))


def resume_of(connection: Connection, assignment: str, backup_of: str | None) -> Resume | None:
    """The newest durable training checkpoint of an assignment, or of that which it backs up."""
    row = _RESUME_OF.one(connection, assignment=assignment, original=backup_of or assignment)
    if row is None:
        return None
    manifest = CheckpointManifest.model_validate_json(row.body)
    return Resume(manifest, row.assignment, row.fencing)


def durable_step(connection: Connection, assignment: str) -> int | None:
    """The step of the newest durable training checkpoint of an assignment."""
    step: int | None = _DURABLE_STEP.value(connection, assignment=assignment)
    return step


def durable_steps(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, int]:
    """Assignment to the step of its newest durable training checkpoint; `ids` None: of all."""
    query = (
        select(checkpoints.c.assignment, func.max(checkpoints.c.step))
        .where(checkpoints.c.kind == "training", checkpoints.c.state == "durable")
        .group_by(checkpoints.c.assignment)
    )
    if ids is not None:
        found = {one: durable_step(connection, one) for one in ids}
        return {one: step for one, step in found.items() if step is not None}
    return {row[0]: row[1] for row in connection.execute(query)}


def arriving_checkpoints(
    connection: Connection, ids: Iterable[str] | None = None
) -> dict[str, tuple[int, float]]:
    """Assignment to the step of its training checkpoint that is to be collected, and since when."""
    rows = (
        connection.execute(_ARRIVING)
        if ids is None
        else (row for one in ids for row in _ARRIVING_OF.all(connection, assignment=one))
    )
    return {row.assignment: (row.step, row.announced_at) for row in rows}


def training_checkpoints(connection: Connection, assignment: str) -> list[int]:
    """Training checkpoints of an assignment that are kept or wanted."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.kind == "training",
        checkpoints.c.state.in_(("announced", "durable")),
    )
    return list(connection.execute(query).scalars())


def submitted_checkpoints(connection: Connection, assignment: str) -> list[int]:
    """Experts of an assignment that wait to be collected or verified."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.kind == "expert",
        checkpoints.c.state.in_(("announced", "durable")),
    )
    return list(connection.execute(query).scalars())


def superseded_training(connection: Connection, assignment: str) -> list[int]:
    """Training checkpoints of an assignment that are no longer needed."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.kind == "training",
        checkpoints.c.state == "superseded",
    )
    return list(connection.execute(query).scalars())


def superseded(ids: Iterable[int], now: float) -> list[Row]:
    """What an entry writes of checkpoints that are no longer needed."""
    return [
        changed(checkpoints, checkpoint_id=one, state="superseded", decided_at=now) for one in ids
    ]


def unneeded_blobs(connection: Connection, ids: Sequence[int]) -> tuple[str, ...]:
    """Digests of the blobs of these checkpoints that no held checkpoint and no shard names."""
    theirs = select(checkpoint_blobs.c.digest).where(checkpoint_blobs.c.checkpoint_id.in_(ids))
    return unneeded(connection, set(connection.execute(theirs).scalars()))


def unneeded(connection: Connection, digests: Collection[str]) -> tuple[str, ...]:
    """Those of `digests` that no held checkpoint and no shard names."""
    held = (
        select(checkpoint_blobs.c.digest)
        .join(checkpoints, checkpoints.c.checkpoint_id == checkpoint_blobs.c.checkpoint_id)
        .where(checkpoints.c.state.in_(HELD), checkpoint_blobs.c.digest.in_(digests))
    )
    of_shards = select(shards.c.digest).where(shards.c.digest.in_(digests))
    needed = {*connection.execute(held).scalars(), *connection.execute(of_shards).scalars()}
    return tuple(sorted(set(digests) - needed))


def _waiting(connection: Connection, announcement: Announcement) -> list[int]:
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == announcement.assignment,
        checkpoints.c.kind == "training",
        checkpoints.c.state == "announced",
    )
    return list(connection.execute(query).scalars())


def _named(announcement: Announcement, number: int, state: str, now: float) -> Row:
    return added(
        checkpoints,
        checkpoint_id=number,
        assignment=announcement.assignment,
        fencing=announcement.fencing,
        worker=announcement.worker,
        kind=announcement.kind,
        step=announcement.step,
        manifest_digest=announcement.manifest.digest,
        manifest_size=announcement.manifest.size,
        state=state,
        reason="",
        announced_at=now,
    )


_SELECT = (
    select(checkpoints, presence.c.maddrs, specs.c.body.label("spec_body"))
    .join(presence, presence.c.worker == checkpoints.c.worker)
    .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
)


_NAMED_BEFORE = Prepared(
    select(checkpoints.c.checkpoint_id, checkpoints.c.state, checkpoints.c.fencing).where(
        checkpoints.c.assignment == bindparam("assignment"),
        checkpoints.c.worker == bindparam("worker"),
        checkpoints.c.kind == bindparam("kind"),
        checkpoints.c.manifest_digest == bindparam("manifest"),
    )
)
_SET_ANNOUNCED_AT = update_by_key(checkpoints, ("announced_at",))
_WANTED_FROM = Prepared(
    select(wanted.c.digest, wanted.c.size)
    .join(checkpoints, checkpoints.c.checkpoint_id == wanted.c.checkpoint_id)
    .where(checkpoints.c.worker == bindparam("worker"), checkpoints.c.state == "announced")
    .order_by(wanted.c.since, wanted.c.digest)
)
_HELD_FROM = Prepared(
    select(checkpoints.c.manifest_digest)
    .where(checkpoints.c.worker == bindparam("worker"), checkpoints.c.body.is_not(None))
    .order_by(checkpoints.c.decided_at.desc())
    .limit(_DECIDED_SHOWN)
)
_DURABLE = (checkpoints.c.kind == "training") & (checkpoints.c.state == "durable")
_RESUME_OF = Prepared(
    select(checkpoints.c.body, checkpoints.c.assignment, checkpoints.c.fencing)
    .where(
        _DURABLE,
        (checkpoints.c.assignment == bindparam("assignment"))
        | (checkpoints.c.assignment == bindparam("original")),
    )
    .order_by(checkpoints.c.step.desc(), checkpoints.c.checkpoint_id.desc())
    .limit(1)
)
_DURABLE_STEP = Prepared(
    select(func.max(checkpoints.c.step)).where(
        _DURABLE, checkpoints.c.assignment == bindparam("assignment")
    )
)
_ARRIVING = select(checkpoints.c.assignment, checkpoints.c.step, checkpoints.c.announced_at).where(
    checkpoints.c.kind == "training", checkpoints.c.state == "announced"
)
_ARRIVING_OF = Prepared(_ARRIVING.where(checkpoints.c.assignment == bindparam("assignment")))


def _checkpoint(row: Any) -> CheckpointRow:
    return CheckpointRow(
        checkpoint_id=row.checkpoint_id,
        assignment=row.assignment,
        fencing=row.fencing,
        worker=row.worker,
        worker_maddrs=tuple(json.loads(row.maddrs)),
        kind=row.kind,
        step=row.step,
        manifest=BlobRef(digest=row.manifest_digest, size=row.manifest_size),
        spec=parse_spec(row.spec_body),
        state=row.state,
        announced_at=row.announced_at,
    )
