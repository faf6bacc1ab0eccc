"""Who may read or upload a blob. Denied unless a rule here allows it."""

from sqlalchemy import Connection, select

from coordinator.ledger.run import own_data_terms
from coordinator.ledger.tables import (
    IS_LIVE,
    assignments,
    attempts,
    checkpoint_blobs,
    checkpoints,
    shards,
    wanted,
    workers,
)
from protocol.blobs import BlobRef

PUBLIC_SPLITS = ("train", "dev")


def may_read(connection: Connection, digest: str, peer: str) -> bool:
    """Whether `peer` may read a blob.

    Train and dev shards and accepted experts: anyone who is not banned. A durable training
    checkpoint: the holder of its assignment's lease, or of a backup's. The tokenizer: anyone,
    where the run takes own data. Gate and test shards, and all else: nobody.
    """
    banned = select(workers.c.worker).where(workers.c.worker == peer, workers.c.banned != 0)
    if connection.execute(banned).first() is not None:
        return False
    splits = set(
        connection.execute(select(shards.c.split).where(shards.c.digest == digest)).scalars()
    )
    if splits:
        return splits <= set(PUBLIC_SPLITS)
    terms = own_data_terms(connection)
    if terms is not None and terms.tokenizer.digest == digest:
        return True
    named = (
        select(checkpoints.c.assignment)
        .join(checkpoint_blobs, checkpoint_blobs.c.checkpoint_id == checkpoints.c.checkpoint_id)
        .where(checkpoint_blobs.c.digest == digest)
    )
    accepted = named.where(checkpoints.c.state == "accepted")
    if connection.execute(accepted).first() is not None:
        return True
    held = (
        select(attempts.c.assignment, assignments.c.backup_of)
        .join(assignments, assignments.c.assignment == attempts.c.assignment)
        .where(attempts.c.worker == peer, IS_LIVE)
    )
    ids = [one for row in connection.execute(held) for one in row if one is not None]
    handed_over = named.where(
        checkpoints.c.kind == "training",
        checkpoints.c.state == "durable",
        checkpoints.c.assignment.in_(ids),
    )
    return connection.execute(handed_over).first() is not None


def may_upload(connection: Connection, digest: str, *, worker: str | None = None) -> BlobRef | None:
    """The blob with this digest if it is wanted now, from `worker` where one is given."""
    query = (
        select(wanted.c.digest, wanted.c.size)
        .join(checkpoints, checkpoints.c.checkpoint_id == wanted.c.checkpoint_id)
        .where(wanted.c.digest == digest, checkpoints.c.state == "announced")
    )
    if worker is not None:
        query = query.where(checkpoints.c.worker == worker)
    row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else BlobRef(digest=row.digest, size=row.size)
