"""A wire and two stores."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.blobs import BlobStore
from tests.wire import Wire


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    wire = Wire(tmp_path / "socket")
    async with await asyncio.start_unix_server(wire.accept, path=wire.path):
        yield wire


@pytest.fixture
def theirs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "theirs")


@pytest.fixture
def mine(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "mine")
