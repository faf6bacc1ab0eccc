"""Registered volunteers, for every test of the api."""

from typing import Any

import pytest

from shared.identity import Identity
from tests.integration.api.volunteer import Volunteer


@pytest.fixture
def volunteer(api, make, tmp_path):
    def build(name: str, **capability: Any) -> Volunteer:
        identity = Identity.create(tmp_path / name / "worker.key")
        return Volunteer(api, identity, make.capability(**capability))

    return build


@pytest.fixture
async def anna(volunteer):
    worker = volunteer("anna")
    await worker.register()
    return worker


@pytest.fixture
async def bert(volunteer):
    worker = volunteer("bert")
    await worker.register()
    return worker
