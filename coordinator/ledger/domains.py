"""Domains, their shards and their difficulty."""

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

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


def add_domain(connection: Connection, domain: str) -> None:
    """Harmless when repeated."""
    if connection.execute(select(domains).where(domains.c.domain == domain)).first() is None:
        connection.execute(domains.insert().values(domain=domain))


def add_shard(connection: Connection, manifest: ShardManifest) -> None:
    """Add a shard, and its domain where it is new. A shard is never replaced: LedgerError."""
    add_domain(connection, manifest.domain)
    place = (shards.c.domain == manifest.domain) & (shards.c.split == manifest.split)
    found = connection.execute(select(shards.c.body).where(place)).scalar()
    if found is None:
        connection.execute(
            shards.insert().values(
                domain=manifest.domain,
                split=manifest.split,
                digest=manifest.blob.digest,
                body=manifest.model_dump_json(),
            )
        )
    elif ShardManifest.model_validate_json(found) != manifest:
        raise LedgerError(
            f"{manifest.split} shard of {manifest.domain}: holds another one, "
            f"expected {manifest.blob.digest}"
        )


def set_domain_class(
    connection: Connection, domain: str, difficulty: str, seed_perplexity: float
) -> None:
    """Record how hard the domain is for the seed. Raises LedgerError for an unknown domain."""
    changed = connection.execute(
        update(domains)
        .where(domains.c.domain == domain)
        .values(difficulty=difficulty, seed_perplexity=seed_perplexity)
    )
    if changed.rowcount == 0:
        raise LedgerError(f"domain {domain!r}: unknown, expected one that has shards")


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
