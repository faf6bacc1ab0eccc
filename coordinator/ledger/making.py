"""Checkpoints that the coordinator makes itself: accepted without a lease, in the same tables."""

from sqlalchemy import Connection, select

from coordinator.ledger.assignments import find_assignment, new_assignment, original_of
from coordinator.ledger.entries import Row, added, next_number, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.run import get_run
from coordinator.ledger.tables import checkpoint_blobs, checkpoints, specs, workers
from coordinator.lifecycle import Assignment
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.manifests import CheckpointManifest
from protocol.specs import MADE, ExpertSpec
from shared.version import SOFTWARE_VERSION

REASON = "made by the coordinator"


def add_made(
    connection: Connection,
    spec: ExpertSpec,
    *,
    manifest: CheckpointManifest,
    manifest_ref: BlobRef,
    shard: BlobRef,
    now: float,
) -> str:
    """Add a checkpoint that the coordinator made, as accepted; returns its assignment's id.

    The blobs of the manifest, whose worker is the coordinator, must be in the store by now. It
    earns no receipt. Harmless when repeated. Raises LedgerError for a spec that is to be trained,
    a manifest of something else, and a shard that is not the spec's.
    """
    coordinator = get_run(connection).coordinator
    _check(spec, manifest, shard, coordinator)
    assignment = original_of(spec)
    if find_assignment(connection, assignment) is not None:
        return assignment
    standing = Assignment(assignment=assignment, state=AssignmentState.ACCEPTED, worker=coordinator)
    number = next_number(connection)
    rows = [
        added(specs, digest=spec.digest, body=spec.model_dump_json()),
        new_assignment(standing, spec, shard=shard, schemes=(), now=now, reason=REASON),
        *_as_worker(connection, coordinator, now),
        added(
            checkpoints,
            checkpoint_id=number,
            assignment=assignment,
            fencing=standing.fencing,
            worker=coordinator,
            kind=manifest.kind,
            step=manifest.step,
            manifest_digest=manifest_ref.digest,
            manifest_size=manifest_ref.size,
            state="accepted",
            body=manifest.model_dump_json(),
            reason=REASON,
            decided_at=now,
            announced_at=now,
        ),
    ]
    digests = {manifest_ref.digest, *(file.blob.digest for file in manifest.files)}
    rows += [added(checkpoint_blobs, checkpoint_id=number, digest=one) for one in sorted(digests)]
    facts = {"assignment": assignment, "spec": spec.digest, "worker": coordinator}
    record(connection, "make", *rows, facts=facts, now=now)
    return assignment


def _check(
    spec: ExpertSpec, manifest: CheckpointManifest, shard: BlobRef, coordinator: str
) -> None:
    if spec.kind not in MADE:
        raise LedgerError(f"kind {spec.kind!r}: expected one of {MADE}, others are trained")
    if shard.digest != spec.train_shard:
        raise LedgerError(f"shard {shard.digest}: expected the spec's own, {spec.train_shard}")
    found = (manifest.kind, manifest.spec, manifest.step, manifest.worker)
    expected = ("expert", spec.digest, 0, coordinator)
    if found != expected:
        raise LedgerError(f"manifest of {found}: expected {expected}")


def _as_worker(connection: Connection, coordinator: str, now: float) -> list[Row]:
    """The row that its checkpoints point to; without presence, it is no worker to anybody."""
    known = select(workers.c.worker).where(workers.c.worker == coordinator)
    if connection.execute(known).first() is not None:
        return []
    return [
        added(
            workers,
            worker=coordinator,
            name="coordinator",
            software_version=SOFTWARE_VERSION,
            banned=0,
            draining=0,
            registered_at=now,
        )
    ]
