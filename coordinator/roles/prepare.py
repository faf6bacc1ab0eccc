"""The text becomes shards, and the ledger learns of them. Idempotent; ends by itself."""

import time
from collections.abc import Callable

import typer

from coordinator.ledger import queries
from coordinator.roles import RoleContext
from coordinator.text.prepare import prepare
from shared.clock import now
from shared.identity import Identity

PERCENT_SECONDS = 2.0
"""How often a percentage is shown; all other lines are."""


def run(context: RoleContext, *, say: Callable[[str], None] = typer.echo) -> None:
    """Makes what is missing. Raises PrepareError, SourceError or LedgerError."""
    prepared = prepare(context.run, context.folders, progress=_Progress(say).say)
    identity = Identity.load(context.folders.coordinator_key)
    ledger = context.open_ledger()
    try:
        ledger.create()
        with ledger.begin() as connection:
            queries.create_run(
                connection, run=context.run.run.name, coordinator=identity.peer_id, now=now()
            )
            for shard in prepared.shards:
                queries.add_shard(connection, shard, now=now())
    finally:
        ledger.close()


class _Progress:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        is_percentage = text.endswith("%")
        if is_percentage and time.monotonic() - self._last < PERCENT_SECONDS:
            return
        self._last = time.monotonic()
        self._say(text)
