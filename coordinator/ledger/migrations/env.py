"""Runs migrations on the connection, and within the transaction, of `coordinator.ledger.schema`."""

from alembic import context

from coordinator.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
