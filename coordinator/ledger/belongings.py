"""What a blob belongs to: the shard that it is, or the checkpoints that it is a part of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy import Row as Found

from coordinator.ledger.checkpoints import HELD
from coordinator.ledger.tables import assignments, checkpoints, shards, specs
from coordinator.ledger.visibility import PUBLIC_SPLITS
from coordinator.names import checkpoint_name
from protocol.blobs import BlobRef, ShardManifest
from protocol.manifests import CheckpointManifest
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class Belonging:
    """A blob is a part of something. `needed`: without the blob, something of the run is lost.

    `words` name it, such as `train shard of python`. A `sealed` blob is a gate or test shard.
    """

    blob: BlobRef
    words: str
    needed: bool
    sealed: bool = False


def belongings(connection: Connection) -> list[Belonging]:
    """What every blob that the ledger names belongs to. A blob may occur more than once."""
    found: list[Belonging] = []
    for body in connection.execute(select(shards.c.body)).scalars():
        shard = ShardManifest.model_validate_json(body)
        words = f"{shard.split} shard of {shard.domain}"
        sealed = shard.split not in PUBLIC_SPLITS
        found.append(Belonging(shard.blob, words, needed=True, sealed=sealed))
    for row in connection.execute(_CHECKPOINTS):
        found += _of_checkpoint(row)
    return found


def _of_checkpoint(row: Found[Any]) -> Iterator[Belonging]:
    name = checkpoint_name(ExpertSpec.model_validate_json(row.spec_body))
    what = f"{row.state} {'training checkpoint' if row.kind == 'training' else 'expert'} {name}"
    words = f"{what} at step {row.step} ({row.assignment})"
    needed = row.state in HELD
    manifest = BlobRef(digest=row.manifest_digest, size=row.manifest_size)
    yield Belonging(manifest, f"manifest of {words}", needed=needed)
    if row.body is not None:
        for file in CheckpointManifest.model_validate_json(row.body).files:
            yield Belonging(file.blob, f"{file.name} of {words}", needed=needed)


_CHECKPOINTS = (
    select(checkpoints, specs.c.body.label("spec_body"))
    .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
    .order_by(checkpoints.c.checkpoint_id)
)
