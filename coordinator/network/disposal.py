"""Deletes blobs that nobody needs, so that nobody can come to need them meanwhile.

Whoever calls a checkpoint durable looks, in the same write transaction, whether its blobs are
there. Deleting happens in a write transaction too, after asking the ledger once more: so the one
sees what the other did, in whatever process they run.
"""

from collections.abc import Collection

from coordinator.ledger import Ledger, queries
from shared.blobstore import BlobStore


def dispose(ledger: Ledger, store: BlobStore, digests: Collection[str]) -> None:
    """Deletes those of `digests` that no held checkpoint and no shard names."""
    if not digests:
        return
    with ledger.begin() as connection:
        for digest in queries.unneeded(connection, digests):
            store.delete(digest)
