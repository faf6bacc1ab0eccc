"""Tests of what the ledger holds: each runs on SQLite and on a real PostgreSQL server."""

from collections.abc import Callable

import pytest

from coordinator.ledger import Ledger


@pytest.fixture
def ledger(prepared_database: str, open_ledger: Callable[[str], Ledger]) -> Ledger:
    """An empty ledger on either database, verified when its test is over."""
    return open_ledger(prepared_database)
