"""The place where checkpoints are collected, for every test of the collector."""

from typing import Any

import pytest

from coordinator.ledger import Ledger
from tests.integration.collector.place import Place


@pytest.fixture
async def place(loopback_swarm: Any, ledger: Ledger, clock: Any, make: Any) -> Any:
    place = Place(loopback_swarm, ledger, clock, make)
    yield place
    await place.collector.stop()
