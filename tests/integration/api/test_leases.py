"""What a lease lives through: silence, hand-overs, pauses and clocks that jump."""

import asyncio

import pytest

from coordinator.api.app import create_app
from coordinator.ledger import queries
from protocol.errors import ErrorCode
from protocol.messages import (
    Acknowledge,
)
from tests.integration.api.volunteer import (
    add_work,
    allowed,
    collect,
    refusal,
)


async def test_an_offer_that_nobody_acknowledges_lapses(api, make, anna, bert):
    add_work(api, make)
    offer = await anna.offer()
    api.pass_time(21.0)
    refusal(await anna.acknowledge(offer), ErrorCode.LEASE_LOST)
    assert (await bert.offer()).fencing == 2


async def test_the_first_heartbeat_acknowledges_an_offer(api, make, anna):
    add_work(api, make)
    offer = await anna.offer()
    assert (await anna.beat(offer, 1)).status_code == 200
    with api.ledger.read() as connection:
        assert queries.get_assignment(connection, offer.assignment).state == "running"
        kinds = [entry.kind for entry in queries.read_entries(connection)]
    assert kinds[-1] == "acknowledge"


async def test_an_unknown_assignment_is_named(anna):
    response = await anna.send(
        "POST", f"/v1/assignments/a{'0' * 16}/acknowledge", Acknowledge(fencing=1)
    )
    assert "a0000000000000000" in refusal(response, ErrorCode.UNKNOWN_ASSIGNMENT).message


async def test_an_expired_lease_hands_over_with_the_durable_checkpoint(api, make, anna, bert):
    spec = add_work(api, make)
    lost = await anna.start()
    await anna.beat(lost, 8, make.blob("eight"))
    collect(api, make, spec, anna, step=8)
    resume = make.manifest(spec, anna.identity.peer_id, step=8)
    weights = resume.blob("model.safetensors").digest
    assert not allowed(api, weights, bert)
    api.pass_time(32.0)
    refusal(await anna.beat(lost, 9), ErrorCode.LEASE_LOST)
    offer = await bert.start()
    assert offer.resume == resume
    assert offer.fencing == 2
    assert allowed(api, weights, bert)
    assert not allowed(api, weights, anna)


async def test_acknowledge_and_release_may_be_repeated(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    assert (await anna.acknowledge(offer)).status_code == 200
    for _ in range(2):
        assert (await anna.release(offer)).json()["state"] == "open"


async def test_the_next_offer_waits_for_a_released_checkpoint_up_to_a_heartbeat(
    api, make, anna, bert
):
    spec = add_work(api, make)
    offer = await anna.start()
    await anna.release(offer, checkpoint=make.blob("twelve"), step=12)
    api.pass_time(5.0)
    assert (await bert.lease()).offer is None
    collect(api, make, spec, anna, step=12)
    resumed = await bert.offer()
    assert resumed.resume == make.manifest(spec, anna.identity.peer_id, step=12)
    await bert.release(resumed, checkpoint=make.blob("fifteen"), step=15)
    api.pass_time(11.0)
    assert (await anna.offer()).resume == resumed.resume


async def test_a_restart_extends_every_lease_by_the_downtime(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    api.pass_time(10.0)
    api.clock.advance(500.0)
    api.tick()
    api.pass_time(19.0)
    assert (await anna.beat(offer, 3)).status_code == 200


@pytest.mark.parametrize("jumps", [(1800.0,), (-1800.0,), (-900.0, 1800.0), (900.0, -1800.0)])
async def test_a_clock_of_the_coordinator_that_jumps_costs_no_lease(api, make, anna, jumps):
    add_work(api, make)
    offer = await anna.offer()
    assert (await anna.beat(offer, 1)).status_code == 200
    for step, seconds in enumerate(jumps, 2):
        api.clock.advance(seconds)
        assert (await anna.beat(offer, step)).status_code == 200
        api.tick()
        api.pass_time(5.0)
    with api.ledger.read() as connection:
        row = queries.get_assignment(connection, offer.assignment)
    assert (row.state, row.standing.fencing) == ("running", offer.fencing)


async def test_a_heartbeat_right_after_a_pause_of_the_api_is_not_late(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    api.clock.advance(120.0)
    assert (await anna.beat(offer, 3)).status_code == 200


async def test_a_training_that_begins_later_than_it_was_offered_stops_no_scheduler(
    api, make, anna, bert
):
    add_work(api, make)
    add_work(api, make, rng_seed=7)
    offer = await anna.start()
    assert (await anna.beat(offer, 5, first_step=5)).status_code == 200
    api.tick()
    await bert.register()
    assert (await bert.lease()).offer is not None


async def test_a_pause_that_outlasts_every_token_costs_nobody_a_lease(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    api.pass_time(10.0)
    api.clock.advance(2 * 3600.0)
    assert (await anna.beat(offer, 3)).status_code == 401
    api.tick()
    await anna.register()
    assert (await anna.beat(offer, 3)).status_code == 200


@pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 0.8}], indirect=True)
async def test_the_served_app_lets_leases_run_out_even_with_short_heartbeats(api, make, anna):
    add_work(api, make)
    await anna.start()
    served = create_app(
        ledger=api.ledger, identity=api.identity, settings=api.settings, now=api.clock
    )
    async with served.router.lifespan_context(served), asyncio.timeout(60):
        while (await anna.send("GET", "/v1/assignments")).json()[0]["state"] != "open":
            await asyncio.sleep(0.05)
            api.clock.advance(0.05)
    with api.ledger.read() as connection:
        kinds = [entry.kind for entry in queries.read_entries(connection)]
    assert kinds[-1] == "expire"


@pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 0.8}], indirect=True)
async def test_a_tick_that_fails_is_not_the_last_one(api, make, anna, caplog):
    add_work(api, make)
    await anna.start()
    mistakes = [TypeError("no time"), KeyError("no assignment")]

    def now() -> float:
        if served_since and mistakes:
            raise mistakes.pop()
        return api.clock()

    served_since: list[float] = []
    served = create_app(ledger=api.ledger, identity=api.identity, settings=api.settings, now=now)
    served_since.append(api.clock())
    async with served.router.lifespan_context(served), asyncio.timeout(60):
        while (await anna.send("GET", "/v1/assignments")).json()[0]["state"] != "open":
            await asyncio.sleep(0.05)
            api.clock.advance(0.05)
    assert not mistakes
    assert caplog.text.count("a tick failed") == 2


async def test_a_clock_that_jumps_back_prolongs_no_lease_of_a_worker_that_is_gone(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    api.clock.advance(-7 * 86400.0)
    api.tick()
    with api.ledger.read() as connection:
        left = queries.get_assignment(connection, offer.assignment).standing.expires_at
    assert left - api.clock() <= 3 * api.settings.heartbeat_seconds
    api.pass_time(3 * api.settings.heartbeat_seconds + 1.0)
    with api.ledger.read() as connection:
        assert queries.get_assignment(connection, offer.assignment).state == "open"
