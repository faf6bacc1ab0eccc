"""Leases that run out while a trainer stands still, by a clock that runs."""

import asyncio
from typing import Any

import pytest

from coordinator import lifecycle
from coordinator.ledger import queries
from shared.clock import now
from tests.integration.ledger_side.side import add_work, lease_of, start, until
from worker.lease import LeaseGone
from worker.tasks import background


class RealClock:
    """The coordinator's clock runs."""

    def __call__(self) -> float:
        return now()


class TestStall:
    """With a clock that runs."""

    @pytest.fixture
    def clock(self) -> RealClock:
        return RealClock()

    @pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 1.0}], indirect=True)
    async def test_a_trainer_that_stands_still_loses_its_lease_and_the_volunteer_is_told_why(
        self, api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALL_INTERVALS", 1.5)
        monkeypatch.setattr(lifecycle, "STALL_STEPS", 0)
        add_work(api, make)
        anna = workers("anna")
        member = await anna.join(make.capability())
        lease = lease_of(member, await start(member, make))
        lease.note_progress({"step": 1, "loss": 1.0, "tokens_per_second": 1.0})
        await asyncio.wait_for(lease.beats(), 20)
        with pytest.raises(LeaseGone, match="no further than step 1 in 0:0") as gone:
            lease.check()
        assert gone.value.stalled

    @pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 1.0}], indirect=True)
    async def test_a_lease_that_runs_out_over_a_pause_is_known_early_enough_to_give_it_back(
        self, api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALL_INTERVALS", 6)
        monkeypatch.setattr(lifecycle, "STALL_STEPS", 0)
        add_work(api, make)
        anna = workers("anna")
        member = await anna.join(make.capability())
        offer = await start(member, make)
        lease = lease_of(member, offer)
        async with background(lease.beats()):
            for step in range(1, 4):
                lease.note_progress({"step": step, "loss": 1.0, "tokens_per_second": 1.0})
                seen = len(anna.line.paths)
                await until("a beat", lambda seen=seen: len(anna.line.paths) > seen)
                assert not lease.is_running_out()
            await until("it runs out", lease.is_running_out)
            assert not lease.gone.is_set()
            assert await lease.release("stopped", "paused") == "released"
        assert api_state(api, offer.assignment) == "open"


def api_state(api: Any, assignment: str) -> str:
    with api.ledger.read() as connection:
        return queries.get_assignment(connection, assignment).state.value
