"""Checkpoints: what workers announced, what the coordinator holds, what it wants to be uploaded.

announced   named by a lease's holder; the network role is to collect it
durable     the coordinator holds the manifest and every file
superseded  no longer needed; its blobs may go
spare       an expert handed in under an old fencing number; never collected
refused     its files are not what they must be
accepted, rejected, inconclusive    a durable expert after its verification
"""

import json
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Insert, Row, delete, or_, select, update

from coordinator import lifecycle
from coordinator.ledger.assignments import (
    end_attempt,
    get_assignment,
    parse_spec,
    store_standing,
)
from coordinator.ledger.entries import append
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import (
    assignments,
    checkpoint_blobs,
    checkpoints,
    shards,
    specs,
    wanted,
    workers,
)
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.manifests import CheckpointKind, CheckpointManifest
from protocol.specs import ExpertSpec

KEPT_CHECKPOINTS = 2
"""Durable training checkpoints kept of an assignment: the newest, and one to fall back on."""

_HELD = ("durable", "accepted", "inconclusive")
_DECIDED_SHOWN = 64


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


def announce(connection: Connection, announcement: Announcement, now: float) -> None:
    """Ask the network role to collect a checkpoint; harmless when repeated.

    A training checkpoint takes the place of that of the assignment that nobody collected yet, so
    there is at most one. An expert that was named before, under a lease that ended, counts under
    the new one. What another worker named is its own: a manifest's digest is public and proves
    nothing.
    """
    mine = (
        (checkpoints.c.assignment == announcement.assignment)
        & (checkpoints.c.worker == announcement.worker)
        & (checkpoints.c.kind == announcement.kind)
        & (checkpoints.c.manifest_digest == announcement.manifest.digest)
    )
    found = connection.execute(select(checkpoints).where(mine)).one_or_none()
    if found is not None:
        if announcement.kind == "expert" and found.state in ("spare", "superseded"):
            connection.execute(
                update(checkpoints)
                .where(mine)
                .values(state="announced", fencing=announcement.fencing, announced_at=now)
            )
        elif found.state == "announced":
            connection.execute(update(checkpoints).where(mine).values(announced_at=now))
        return
    if announcement.kind == "training":
        connection.execute(
            update(checkpoints)
            .where(
                checkpoints.c.assignment == announcement.assignment,
                checkpoints.c.kind == "training",
                checkpoints.c.state == "announced",
            )
            .values(state="superseded", decided_at=now)
        )
    connection.execute(_insert(announcement, "announced", now))


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
    if known is not None:
        return
    connection.execute(_insert(announcement, "spare", now))
    facts = {
        "assignment": announcement.assignment,
        "fencing": announcement.fencing,
        "worker": announcement.worker,
        "manifest": announcement.manifest.digest,
    }
    append(connection, "spare", facts=facts, now=now)


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


def mark_durable(
    connection: Connection, checkpoint_id: int, manifest: CheckpointManifest, now: float
) -> tuple[str, ...]:
    """The coordinator holds the manifest and every file that it names.

    Returns the digests of blobs that may now be deleted: of training checkpoints of the assignment
    before the last two. Raises LedgerError when the manifest is not what was announced. Harmless
    when repeated.
    """
    row = _get(connection, checkpoint_id)
    if row.state in _HELD or _has_blobs(connection, checkpoint_id):
        return ()
    if row.state not in ("announced", "superseded"):
        raise LedgerError(f"checkpoint {checkpoint_id}: is {row.state}, expected announced")
    _check(row, manifest)
    want_blobs(connection, checkpoint_id, (), now)
    for digest in {row.manifest.digest, *(file.blob.digest for file in manifest.files)}:
        connection.execute(
            checkpoint_blobs.insert().values(checkpoint_id=checkpoint_id, digest=digest)
        )
    standing = get_assignment(connection, row.assignment).standing
    if row.kind == "training" and row.worker in standing.excluded:
        return discard(connection, [checkpoint_id], now)
    _set_state(connection, checkpoint_id, "durable", now, body=manifest.model_dump_json())
    facts = {
        "assignment": row.assignment,
        "fencing": row.fencing,
        "worker": row.worker,
        "kind": row.kind,
        "step": row.step,
        "manifest": row.manifest.digest,
    }
    append(connection, "durable", facts=facts, now=now)
    if row.kind == "expert":
        return _hold_submission(connection, row, now)
    return _drop_older(connection, row, now)


def mark_refused(
    connection: Connection, checkpoint_id: int, reason: str, now: float
) -> tuple[str, ...]:
    """The files are not what they must be. A submission's assignment is open again for others.

    Returns the digests of blobs that may now be deleted. Harmless when repeated.
    """
    row = _get(connection, checkpoint_id)
    if row.state == "refused":
        return ()
    want_blobs(connection, checkpoint_id, (), now)
    _set_state(connection, checkpoint_id, "refused", now, reason=reason)
    if row.kind == "training":
        facts = {"assignment": row.assignment, "worker": row.worker, "step": row.step}
        append(connection, "reject", facts={**facts, "reason": reason}, now=now)
        return ()
    standing = get_assignment(connection, row.assignment).standing
    after = lifecycle.reject(standing, fencing=row.fencing, now=now)
    if isinstance(after, lifecycle.Refused):
        return ()
    store_standing(connection, after, reason=f"submission refused: {reason}", now=now)
    end_attempt(connection, row.assignment, row.fencing, state="refused", reason=reason, now=now)
    facts = {"assignment": row.assignment, "fencing": row.fencing, "worker": row.worker}
    append(connection, "reject", facts={**facts, "reason": reason}, now=now)
    return discard_training(connection, row.assignment, now)


def want_blobs(
    connection: Connection,
    checkpoint_id: int,
    refs: tuple[BlobRef, ...] | list[BlobRef],
    now: float,
) -> None:
    """Ask the worker of a checkpoint to upload these blobs over HTTP; empty: none any more."""
    connection.execute(delete(wanted).where(wanted.c.checkpoint_id == checkpoint_id))
    for ref in {ref.digest: ref for ref in refs}.values():
        connection.execute(
            wanted.insert().values(
                checkpoint_id=checkpoint_id, digest=ref.digest, size=ref.size, since=now
            )
        )


def wanted_from(connection: Connection, worker: str) -> tuple[BlobRef, ...]:
    """The blobs that this worker is asked to upload."""
    query = (
        select(wanted.c.digest, wanted.c.size)
        .join(checkpoints, checkpoints.c.checkpoint_id == wanted.c.checkpoint_id)
        .where(checkpoints.c.worker == worker, checkpoints.c.state == "announced")
        .order_by(wanted.c.since, wanted.c.digest)
    )
    found = {row.digest: row.size for row in connection.execute(query)}
    return tuple(BlobRef(digest=digest, size=size) for digest, size in found.items())


def held_manifests(connection: Connection, worker: str) -> tuple[str, ...]:
    """Digests of this worker's newest manifests that the coordinator held, files included."""
    query = (
        select(checkpoints.c.manifest_digest)
        .where(checkpoints.c.worker == worker, checkpoints.c.body.is_not(None))
        .order_by(checkpoints.c.decided_at.desc())
        .limit(_DECIDED_SHOWN)
    )
    return tuple(connection.execute(query).scalars())


def resume_manifest(connection: Connection, assignment: str) -> CheckpointManifest | None:
    """The newest durable training checkpoint of an assignment."""
    body = connection.execute(
        select(checkpoints.c.body)
        .where(
            checkpoints.c.assignment == assignment,
            checkpoints.c.kind == "training",
            checkpoints.c.state == "durable",
        )
        .order_by(checkpoints.c.step.desc())
        .limit(1)
    ).scalar()
    return None if body is None else CheckpointManifest.model_validate_json(body)


def durable_steps(connection: Connection) -> dict[str, int]:
    """Assignment to the step of its newest durable training checkpoint."""
    query = select(checkpoints.c.assignment, checkpoints.c.step).where(
        checkpoints.c.kind == "training", checkpoints.c.state == "durable"
    )
    found: dict[str, int] = {}
    for row in connection.execute(query):
        found[row.assignment] = max(found.get(row.assignment, 0), row.step)
    return found


def uncollected_steps(connection: Connection, *, since: float) -> dict[str, int]:
    """Assignment to the step of its newest training checkpoint that was announced after `since`."""
    query = select(checkpoints.c.assignment, checkpoints.c.step).where(
        checkpoints.c.kind == "training",
        checkpoints.c.state == "announced",
        checkpoints.c.announced_at > since,
    )
    found: dict[str, int] = {}
    for row in connection.execute(query):
        found[row.assignment] = max(found.get(row.assignment, 0), row.step)
    return found


def give_up_training(connection: Connection, now: float) -> None:
    """Training checkpoints that nobody could collect for MIN_COLLECT_SECONDS are wanted no more."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.kind == "training",
        checkpoints.c.state == "announced",
        checkpoints.c.announced_at <= now - lifecycle.MIN_COLLECT_SECONDS,
    )
    discard(connection, list(connection.execute(query).scalars()), now)


def discard_training(connection: Connection, assignment: str, now: float) -> tuple[str, ...]:
    """No training checkpoint of the assignment is needed any more; digests of blobs to delete."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.kind == "training",
        checkpoints.c.state.in_(("announced", "durable")),
    )
    discard(connection, list(connection.execute(query).scalars()), now)
    return unneeded_blobs(connection, _superseded_training(connection, assignment))


def discard(connection: Connection, ids: list[int], now: float) -> tuple[str, ...]:
    """Supersede checkpoints; returns the digests of their blobs that nothing else names."""
    for checkpoint_id in ids:
        want_blobs(connection, checkpoint_id, (), now)
        _set_state(connection, checkpoint_id, "superseded", now)
    return unneeded_blobs(connection, ids)


def unneeded_blobs(connection: Connection, ids: list[int]) -> tuple[str, ...]:
    """Digests of the blobs of these checkpoints that no held checkpoint and no shard names."""
    theirs = select(checkpoint_blobs.c.digest).where(checkpoint_blobs.c.checkpoint_id.in_(ids))
    return unneeded(connection, set(connection.execute(theirs).scalars()))


def unneeded(connection: Connection, digests: Collection[str]) -> tuple[str, ...]:
    """Those of `digests` that no held checkpoint and no shard names."""
    held = (
        select(checkpoint_blobs.c.digest)
        .join(checkpoints, checkpoints.c.checkpoint_id == checkpoint_blobs.c.checkpoint_id)
        .where(checkpoints.c.state.in_(_HELD))
    )
    needed = {
        *connection.execute(held).scalars(),
        *connection.execute(select(shards.c.digest)).scalars(),
    }
    return tuple(sorted(set(digests) - needed))


def _hold_submission(connection: Connection, row: CheckpointRow, now: float) -> tuple[str, ...]:
    standing = get_assignment(connection, row.assignment).standing
    after = lifecycle.collected(standing, fencing=row.fencing)
    if isinstance(after, lifecycle.Refused):
        _set_state(connection, row.checkpoint_id, "spare", now)
        return unneeded_blobs(connection, [row.checkpoint_id])
    store_standing(connection, after, reason="waiting for verification", now=now)
    return ()


def _drop_older(connection: Connection, row: CheckpointRow, now: float) -> tuple[str, ...]:
    if get_assignment(connection, row.assignment).state is AssignmentState.ACCEPTED:
        return discard_training(connection, row.assignment, now)
    of_it = (checkpoints.c.assignment == row.assignment) & (checkpoints.c.kind == "training")
    older = select(checkpoints.c.checkpoint_id).where(
        of_it, checkpoints.c.state == "announced", checkpoints.c.step <= row.step
    )
    durable = (
        select(checkpoints.c.checkpoint_id)
        .where(of_it, checkpoints.c.state == "durable")
        .order_by(checkpoints.c.step.desc(), checkpoints.c.checkpoint_id.desc())
    )
    drop = list(connection.execute(older).scalars())
    drop += list(connection.execute(durable).scalars())[KEPT_CHECKPOINTS:]
    discard(connection, drop, now)
    return unneeded_blobs(connection, _superseded_training(connection, row.assignment))


def _superseded_training(connection: Connection, assignment: str) -> list[int]:
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.kind == "training",
        checkpoints.c.state == "superseded",
    )
    return list(connection.execute(query).scalars())


def _check(row: CheckpointRow, manifest: CheckpointManifest) -> None:
    expected = {
        "kind": row.kind,
        "spec": row.spec.digest,
        "worker": row.worker,
        "step": row.step,
    }
    for field, value in expected.items():
        found = getattr(manifest, field)
        if found != value:
            raise LedgerError(
                f"checkpoint {row.checkpoint_id}: manifest has {field} {found!r}, "
                f"expected {value!r}"
            )


def _has_blobs(connection: Connection, checkpoint_id: int) -> bool:
    query = select(checkpoint_blobs).where(checkpoint_blobs.c.checkpoint_id == checkpoint_id)
    return connection.execute(query.limit(1)).first() is not None


def _set_state(
    connection: Connection, checkpoint_id: int, state: str, now: float, **values: str
) -> None:
    connection.execute(
        update(checkpoints)
        .where(checkpoints.c.checkpoint_id == checkpoint_id)
        .values(state=state, decided_at=now, **values)
    )


def _get(connection: Connection, checkpoint_id: int) -> CheckpointRow:
    found = find_checkpoint(connection, checkpoint_id)
    if found is None:
        raise LedgerError(f"checkpoint {checkpoint_id}: unknown")
    return found


def _insert(announcement: Announcement, state: str, now: float) -> Insert:
    return checkpoints.insert().values(
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
    select(checkpoints, workers.c.maddrs, specs.c.body.label("spec_body"))
    .join(workers, workers.c.worker == checkpoints.c.worker)
    .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
)


def _checkpoint(row: Row[tuple[object, ...]]) -> CheckpointRow:
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
