"""Swarms of real processes, and networks for them, for the tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from namespaces import Network, refusal


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of namespaces, which is gone after the test."""
    if reason := refusal():
        pytest.skip(reason)
    with Network() as network:
        yield network
