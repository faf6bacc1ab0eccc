"""How often one key may register: as often as it may call, however often it starts again."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.api.limits import BURST_CALLS, CALLS_A_HEARTBEAT
from coordinator.ledger import Ledger, queries
from protocol.errors import ErrorCode
from protocol.messages import WorkerHeartbeat
from shared.identity import Identity
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, Refused


@pytest.fixture
def ledger(prepared_database: str, open_ledger: Callable[[str], Ledger]) -> Ledger:
    """An empty ledger on either database, verified when its test is over."""
    return open_ledger(prepared_database)


class Newcomer:
    """A key, and the real client with which it registers and calls."""

    def __init__(self, api: Any, identity: Identity, capability: Any) -> None:
        self.capability = capability
        self.client = CoordinatorClient("http://coordinator", identity)
        self.client.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app))

    async def register(self) -> None:
        info = await self.client.run_info()
        await self.client.register(info, self.capability, name="", invite=None, maddrs=())

    async def beat(self) -> None:
        beat = WorkerHeartbeat(capability=self.capability, maddrs=())
        await self.client.heartbeat(beat)

    async def refused(self) -> CoordinatorBusy:
        """The refusal of its next registration, which must be one for calling too often."""
        with pytest.raises(CoordinatorBusy) as caught:
            await self.register()
        assert isinstance(caught.value.__cause__, Refused)
        assert caught.value.__cause__.code is ErrorCode.RATE_LIMITED
        return caught.value


@pytest.fixture
async def newcomer(api: Any, make: Any, tmp_path: Path) -> AsyncIterator[Callable[[str], Newcomer]]:
    made: list[Newcomer] = []

    def build(name: str) -> Newcomer:
        identity = Identity.load_or_create(tmp_path / name / "worker.key")
        made.append(Newcomer(api, identity, make.capability()))
        return made[-1]

    yield build
    for one in made:
        await one.client.http.aclose()


def num_entries(api: Any, kind: str) -> int:
    with api.ledger.read() as connection:
        return sum(entry.kind == kind for entry in queries.read_entries(connection))


@pytest.mark.timeout(180)
async def test_a_key_that_registers_a_thousand_times_is_refused_after_the_burst(
    api: Any, newcomer: Callable[[str], Newcomer]
) -> None:
    stranger = newcomer("stranger")
    for _ in range(BURST_CALLS):
        await stranger.register()
    pace = api.settings.heartbeat_seconds / CALLS_A_HEARTBEAT
    for _ in range(1000 - BURST_CALLS):
        assert (await stranger.refused()).retry_after_seconds == pytest.approx(pace)
    assert num_entries(api, "register") == BURST_CALLS

    await newcomer("anna").register()
    api.clock.advance(pace)
    await stranger.register()
    await stranger.refused()


async def test_a_worker_that_starts_again_and_again_within_seconds_is_let_in(
    api: Any, newcomer: Callable[[str], Newcomer]
) -> None:
    for _ in range(4):
        anna = newcomer("anna")
        await anna.register()
        for _ in range(5):
            await anna.beat()
        api.clock.advance(0.5)


async def test_registering_again_gives_no_call_back(
    api: Any, newcomer: Callable[[str], Newcomer]
) -> None:
    anna = newcomer("anna")
    await anna.register()
    for _ in range(BURST_CALLS - 2):
        await anna.beat()
    await anna.register()
    with pytest.raises(CoordinatorBusy):
        await anna.beat()


async def test_a_registration_that_is_refused_leaves_the_token_as_it_was(
    api: Any, newcomer: Callable[[str], Newcomer]
) -> None:
    anna = newcomer("anna")
    await anna.register()
    for _ in range(BURST_CALLS - 1):
        await anna.beat()
    wait = (await newcomer("anna").refused()).retry_after_seconds
    assert wait is not None
    api.clock.advance(wait)
    await anna.beat()
