"""What follows when the network role has collected a checkpoint, or cannot."""

from sqlalchemy import Connection, select

from coordinator import lifecycle
from coordinator.ledger.assignments import get_assignment, standing_row, store_expiry
from coordinator.ledger.attempts import ended
from coordinator.ledger.checkpoints import (
    HELD,
    CheckpointRow,
    find_checkpoint,
    superseded,
    superseded_training,
    training_checkpoints,
    unneeded_blobs,
    want_blobs,
)
from coordinator.ledger.entries import Row, added, changed, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import checkpoint_blobs, checkpoints
from protocol.assignments import FINAL
from protocol.manifests import CheckpointManifest

KEPT_CHECKPOINTS = 2
"""Durable training checkpoints kept of an assignment: the newest, and one to fall back on."""


def mark_durable(
    connection: Connection, checkpoint_id: int, manifest: CheckpointManifest, now: float
) -> tuple[str, ...]:
    """The coordinator holds the manifest and every file that it names.

    Returns the digests of blobs that may now be deleted: of training checkpoints of the assignment
    before the last two. Raises LedgerError when the manifest is not what was announced. Harmless
    when repeated.
    """
    row = _get(connection, checkpoint_id)
    held_before = _has_blobs(connection, checkpoint_id)
    if row.state in HELD or (held_before and row.state != "announced"):
        return ()
    if row.state not in ("announced", "superseded"):
        raise LedgerError(f"checkpoint {checkpoint_id}: is {row.state}, expected announced")
    _check(row, manifest)
    want_blobs(connection, checkpoint_id, (), now)
    rows = [] if held_before else _blobs(row, manifest)
    hold = _hold_submission if row.kind == "expert" else _hold_training
    state, others, unneeded = hold(connection, row, now)
    facts = {"assignment": row.assignment, "worker": row.worker, "step": row.step, "kind": row.kind}
    if manifest.inexact_from is not None:
        facts["inexact_from"] = manifest.inexact_from
    held = changed(
        checkpoints,
        checkpoint_id=checkpoint_id,
        state=state,
        decided_at=now,
        body=manifest.model_dump_json(),
    )
    record(connection, "durable", *rows, held, *others, facts=facts, now=now)
    return unneeded_blobs(connection, unneeded) if unneeded else ()


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
    facts = {"assignment": row.assignment, "fencing": row.fencing, "worker": row.worker}
    refused = changed(
        checkpoints, checkpoint_id=checkpoint_id, state="refused", decided_at=now, reason=reason
    )
    after = None
    if row.kind == "expert":
        standing = get_assignment(connection, row.assignment).standing
        after = lifecycle.reject(standing, fencing=row.fencing, now=now)
    if after is None or isinstance(after, lifecycle.Refused):
        record(connection, "reject", refused, facts=facts, now=now)
        return ()
    dropped = training_checkpoints(connection, row.assignment)
    record(
        connection,
        "reject",
        refused,
        standing_row(after, reason=f"submission refused: {reason}", now=now),
        ended(row.assignment, row.fencing, state="refused", reason=reason, now=now),
        *drop(connection, dropped, now),
        facts=facts,
        now=now,
    )
    store_expiry(connection, after)
    return unneeded_blobs(connection, superseded_training(connection, row.assignment))


def give_up_training(connection: Connection, now: float) -> None:
    """Training checkpoints that nobody could collect for MIN_COLLECT_SECONDS are wanted no more."""
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.kind == "training",
        checkpoints.c.state == "announced",
        checkpoints.c.announced_at <= now - lifecycle.MIN_COLLECT_SECONDS,
    )
    late = list(connection.execute(query).scalars())
    if late:
        record(connection, "supersede", *drop(connection, late, now), now=now)


def drop(connection: Connection, ids: list[int], now: float) -> list[Row]:
    """What an entry writes of checkpoints that are neither wanted nor needed any more."""
    for checkpoint_id in ids:
        want_blobs(connection, checkpoint_id, (), now)
    return superseded(ids, now)


def _blobs(row: CheckpointRow, manifest: CheckpointManifest) -> list[Row]:
    digests = {row.manifest.digest, *(file.blob.digest for file in manifest.files)}
    return [
        added(checkpoint_blobs, checkpoint_id=row.checkpoint_id, digest=one)
        for one in sorted(digests)
    ]


def _hold_submission(
    connection: Connection, row: CheckpointRow, now: float
) -> tuple[str, list[Row], list[int]]:
    """The checkpoint's new state, other rows to write, checkpoints whose blobs may go."""
    standing = get_assignment(connection, row.assignment).standing
    after = lifecycle.collected(standing, fencing=row.fencing)
    if isinstance(after, lifecycle.Refused):
        return "spare", [], [row.checkpoint_id]
    store_expiry(connection, after)
    return "durable", [standing_row(after, reason="waiting for verification", now=now)], []


def _hold_training(
    connection: Connection, row: CheckpointRow, now: float
) -> tuple[str, list[Row], list[int]]:
    found = get_assignment(connection, row.assignment)
    if row.worker in found.standing.excluded:
        return "superseded", [], [row.checkpoint_id]
    dropped = (
        {*training_checkpoints(connection, row.assignment), row.checkpoint_id}
        if found.state in FINAL
        else _older(connection, row)
    )
    state = "superseded" if row.checkpoint_id in dropped else "durable"
    gone = [*dropped, *superseded_training(connection, row.assignment)]
    return state, drop(connection, sorted(dropped - {row.checkpoint_id}), now), gone


def _older(connection: Connection, row: CheckpointRow) -> set[int]:
    """What this training checkpoint, once durable, makes unneeded; itself if newer ones are."""
    of_it = (checkpoints.c.assignment == row.assignment) & (checkpoints.c.kind == "training")
    waiting = select(checkpoints.c.checkpoint_id).where(
        of_it,
        checkpoints.c.state == "announced",
        checkpoints.c.step <= row.step,
        checkpoints.c.checkpoint_id != row.checkpoint_id,
    )
    durable = select(checkpoints.c.step, checkpoints.c.checkpoint_id).where(
        of_it, checkpoints.c.state == "durable"
    )
    kept = [(one.step, one.checkpoint_id) for one in connection.execute(durable)]
    newest_first = sorted({*kept, (row.step, row.checkpoint_id)}, reverse=True)
    beyond = [one for _, one in newest_first[KEPT_CHECKPOINTS:]]
    return {*connection.execute(waiting).scalars(), *beyond}


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


def _get(connection: Connection, checkpoint_id: int) -> CheckpointRow:
    found = find_checkpoint(connection, checkpoint_id)
    if found is None:
        raise LedgerError(f"checkpoint {checkpoint_id}: unknown")
    return found
