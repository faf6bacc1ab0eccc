"""The text becomes shards, and the ledger learns of them. Idempotent; ends by itself."""

import typer

from coordinator.ledger import Ledger, queries
from coordinator.prepare import prepare
from coordinator.roles import RoleContext
from shared.clock import now
from shared.identity import Identity


def run(context: RoleContext) -> None:
    """Makes what is missing. Raises PrepareError, SourceError or LedgerError."""
    prepared = prepare(context.run, context.folders, progress=typer.echo)
    identity = Identity.load(context.folders.coordinator_key)
    ledger = Ledger(context.folders.ledger_url)
    try:
        ledger.create()
        with ledger.begin() as connection:
            queries.create_run(
                connection, run=context.run.run.name, coordinator=identity.peer_id, now=now()
            )
            for shard in prepared.shards:
                queries.add_shard(connection, shard)
    finally:
        ledger.close()
