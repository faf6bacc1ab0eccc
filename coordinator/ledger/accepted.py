"""Accepted checkpoints: the canonical one of each spec, and where it is exported to."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy import Row as Found

from coordinator.ledger.assignments import parse_spec
from coordinator.ledger.tables import assignments, checkpoints, specs
from coordinator.names import checkpoint_name
from protocol.manifests import CheckpointManifest
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class AcceptedRow:
    """The canonical checkpoint of a spec. `folder` is relative to the run's own.

    `owner` alone has the text that it was trained on; None: the text is the run's.
    """

    spec: ExpertSpec
    manifest: CheckpointManifest
    manifest_digest: str
    worker: str
    folder: str
    owner: str | None = None


def expert_folder(spec: ExpertSpec) -> str:
    """Where the accepted checkpoint of a spec is exported to, relative to the run's folder."""
    return f"state/experts/{checkpoint_name(spec)}"


def accepted(connection: Connection) -> dict[str, AcceptedRow]:
    """Spec digest to its canonical checkpoint."""
    return {row.digest: _accepted(row) for row in connection.execute(_ACCEPTED)}


def accepted_of(connection: Connection, spec_digest: str) -> AcceptedRow | None:
    """The canonical checkpoint of one spec."""
    row = connection.execute(_ACCEPTED.where(specs.c.digest == spec_digest)).one_or_none()
    return None if row is None else _accepted(row)


def accepted_specs(connection: Connection) -> set[str]:
    """Digests of the specs that have a canonical checkpoint."""
    query = select(assignments.c.spec).where(assignments.c.state == "accepted")
    return set(connection.execute(query).scalars())


_ACCEPTED = (
    select(checkpoints, specs.c.digest, specs.c.body.label("spec_body"), assignments.c.owner)
    .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
    .where(checkpoints.c.state == "accepted")
)


def _accepted(row: Found[Any]) -> AcceptedRow:
    spec = parse_spec(row.spec_body)
    return AcceptedRow(
        spec=spec,
        manifest=CheckpointManifest.model_validate_json(row.body),
        manifest_digest=row.manifest_digest,
        worker=row.worker,
        folder=expert_folder(spec),
        owner=row.owner,
    )
