"""The asker and the providers of a module's tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.exchange.ground import Ground


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """The asker and the providers of one module's tests."""
    ground = Ground(tmp_path_factory.mktemp("exchange"))
    await ground.start()
    yield ground
    await ground.stop()
