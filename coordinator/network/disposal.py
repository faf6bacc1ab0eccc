"""Deletes blobs that nobody needs, so that nobody can come to need them meanwhile.

What has only partly arrived goes when it had no news for a day and nobody waits for it.

Whoever calls a checkpoint durable looks, in the same write transaction, whether its blobs are
there. Deleting happens in a write transaction too, after asking the ledger once more: so the one
sees what the other did, in whatever process they run.
"""

from collections.abc import Collection, Iterator, Sequence

from pydantic import ValidationError

from coordinator.ledger import Ledger, queries
from coordinator.ledger.queries import CheckpointRow
from protocol.manifests import MAX_MANIFEST_BYTES, CheckpointManifest
from shared.blobs import BadBlob, BlobMissing, BlobStore
from shared.blobs.upkeep import drop_idle, mend

GRACE_SECONDS = 3600.0
"""A blob is swept no earlier than so long after it became complete: what prepare or a transfer
just made is not named in the ledger yet."""

_ASKED_AT_ONCE = 500
_DELETED_AT_ONCE = 8
"""In one write transaction, for which all other writers wait."""


def dispose(ledger: Ledger, store: BlobStore, digests: Collection[str]) -> None:
    """Deletes those of `digests` that no held checkpoint and no shard names."""
    if not digests:
        return
    with ledger.begin() as connection:
        for digest in queries.unneeded(connection, digests):
            store.delete(digest)


def sweep(
    ledger: Ledger, store: BlobStore, *, keep: Collection[str], now: float
) -> tuple[str, ...]:
    """Deletes every blob that nothing names, and returns their digests, sorted.

    A crash between a commit and `dispose` leaves such blobs, and so does the operator's `cancel`.
    Not deleted: those in `keep`, those complete for less than GRACE_SECONDS, and those of a
    checkpoint that is still being collected. What arrived of a blob is deleted, too, once nothing
    came for IDLE_SECONDS and it is not of such a checkpoint. Mends first what a crash left.
    """
    mend(store, now=now)
    idle = _drop_idle(ledger, store, now=now)
    return tuple(sorted({*idle, *_sweep_complete(ledger, store, keep=keep, now=now)}))


def _drop_idle(ledger: Ledger, store: BlobStore, *, now: float) -> tuple[str, ...]:
    partials = store.partials()
    if not partials:
        return ()
    with ledger.read() as connection:
        awaited = _arriving(queries.announced_checkpoints(connection), store)
        awaited |= {one for one in partials if queries.may_upload(connection, one) is not None}
    return drop_idle(store, keep=awaited, now=now)


def _sweep_complete(
    ledger: Ledger, store: BlobStore, *, keep: Collection[str], now: float
) -> tuple[str, ...]:
    old = {digest for digest in store.digests() if _is_old(store, digest, now)} - set(keep)
    if not old:
        return ()
    with ledger.read() as connection:
        unsure = sorted(old - _arriving(queries.announced_checkpoints(connection), store))
        unneeded = [
            digest
            for batch in _batches(unsure, _ASKED_AT_ONCE)
            for digest in queries.unneeded(connection, batch)
        ]
    for batch in _batches(unneeded, _DELETED_AT_ONCE):
        dispose(ledger, store, batch)
    return tuple(digest for digest in unneeded if not store.has(digest))


def _batches(digests: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (digests[start : start + size] for start in range(0, len(digests), size))


def _is_old(store: BlobStore, digest: str, now: float) -> bool:
    try:
        return now - store.complete_since(digest) > GRACE_SECONDS
    except BlobMissing:
        return False


def _arriving(announced: Sequence[CheckpointRow], store: BlobStore) -> set[str]:
    """The manifests of these checkpoints, and the files that those name which are here."""
    found = {row.manifest.digest for row in announced}
    for row in announced:
        try:
            data = store.read(row.manifest, max_bytes=MAX_MANIFEST_BYTES)
            manifest = CheckpointManifest.model_validate_json(data)
        except (BlobMissing, BadBlob, ValidationError, OSError):
            continue
        found |= {file.blob.digest for file in manifest.files}
    return found
