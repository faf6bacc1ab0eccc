"""Domains, their shards and their difficulty."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from coordinator.ledger.entries import added, changed, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import domains, shards
from protocol.blobs import ShardManifest, Split


@dataclass(frozen=True)
class DomainRow:
    """A domain. `difficulty` and `seed_perplexity` (on its dev shard) are None until classified."""

    domain: str
    difficulty: str | None
    seed_perplexity: float | None
    shards: dict[Split, ShardManifest]


def add_shard(connection: Connection, manifest: ShardManifest, *, now: float) -> None:
    """Add a shard, and its domain where it is new. A shard is never replaced: LedgerError."""
    place = (shards.c.domain == manifest.domain) & (shards.c.split == manifest.split)
    found = connection.execute(select(shards.c.body).where(place)).scalar()
    if found is None:
        new = added(
            shards,
            domain=manifest.domain,
            split=manifest.split,
            digest=manifest.blob.digest,
            body=manifest.model_dump_json(),
        )
        known = select(domains).where(domains.c.domain == manifest.domain)
        if connection.execute(known).first() is None:
            record(connection, "shard", added(domains, domain=manifest.domain), new, now=now)
        else:
            record(connection, "shard", new, now=now)
    elif ShardManifest.model_validate_json(found) != manifest:
        raise LedgerError(
            f"{manifest.split} shard of {manifest.domain}: holds another one, "
            f"expected {manifest.blob.digest}"
        )


def set_domain_class(
    connection: Connection, domain: str, difficulty: str, seed_perplexity: float, *, now: float
) -> None:
    """Record how hard the domain is for the seed. Raises LedgerError for an unknown domain."""
    row = changed(domains, domain=domain, difficulty=difficulty, seed_perplexity=seed_perplexity)
    record(connection, "classify", row, now=now)


def all_domains(connection: Connection) -> tuple[DomainRow, ...]:
    """Every domain with its shards, by name."""
    held: dict[str, dict[Split, ShardManifest]] = {}
    for row in connection.execute(select(shards)):
        manifest = ShardManifest.model_validate_json(row.body)
        held.setdefault(manifest.domain, {})[manifest.split] = manifest
    return tuple(
        DomainRow(row.domain, row.difficulty, row.seed_perplexity, held.get(row.domain, {}))
        for row in connection.execute(select(domains).order_by(domains.c.domain))
    )
