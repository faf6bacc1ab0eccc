"""Workers at the real app, and an app that is busy."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ledger_side.side import Worker
from worker.capability import Probed


@pytest.fixture
async def workers(
    api: Any, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], Worker]]:
    monkeypatch.setattr("worker.capability.probe", lambda **_: Probed(make.capability()))
    started: list[Worker] = []

    def start(name: str) -> Worker:
        started.append(Worker(api, tmp_path / name, monkeypatch))
        return started[-1]

    yield start
    for worker in started:
        for member in worker.members:
            await member.stop()
        worker.folder.close()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While set, as many requests wait at the coordinator as may."""
    event = asyncio.Event()
    for module in ("admission", "routes.leasing"):
        monkeypatch.setattr(f"coordinator.api.{module}.is_full", lambda _: event.is_set())
    return event
