"""What a worker that asks for work is offered, and why not."""

import secrets

import pytest

from coordinator.footprint import estimate
from coordinator.ledger import queries
from coordinator.scoring.verification import Accepted
from protocol.errors import ErrorCode
from protocol.messages import (
    LeaseRequest,
    Release,
    Submission,
)
from tests.integration.api.volunteer import (
    add_work,
    collect,
    refusal,
    verify,
)


@pytest.mark.parametrize("api_settings", [{"trust": ()}], indirect=True, ids=["nobody trusted"])
async def test_a_seed_is_kept_for_trusted_workers(api, make, anna):
    add_work(api, make)
    assert "marked trusted" in (await anna.lease()).reason


async def test_the_same_lease_request_gets_the_same_answer(api, make, anna):
    add_work(api, make)
    request_id = secrets.token_hex(16)
    first = await anna.lease(request_id)
    api.clock.advance(3.0)
    assert await anna.lease(request_id) == first
    other = LeaseRequest(
        request_id=request_id, capability=make.capability(free_memory_bytes=1_500_000_000)
    )
    refusal(await anna.send("POST", "/v1/assignments/lease", other), ErrorCode.REQUEST_REUSED)


async def test_a_lost_offer_is_repeated_under_a_new_request(api, make, anna):
    add_work(api, make)
    add_work(api, make, rng_seed=1)
    first = await anna.offer()
    api.clock.advance(5.0)
    again = await anna.offer()
    assert (again.assignment, again.fencing) == (first.assignment, first.fencing)
    assert again.expires_in == first.expires_in - 5.0


async def test_a_worker_holds_one_lease_at_a_time(api, make, anna):
    add_work(api, make)
    add_work(api, make, rng_seed=1)
    await anna.start()
    request = LeaseRequest(request_id=secrets.token_hex(16), capability=anna.capability)
    body = refusal(await anna.send("POST", "/v1/assignments/lease", request), ErrorCode.WRONG_STATE)
    assert body.retry_after_seconds == 30.0


async def test_running_out_of_memory_needs_more_memory_next_time(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    await anna.release(offer, reason="out_of_memory")
    api.pass_time(1.0)
    assert "ran out of memory" in (await anna.lease()).reason
    anna.capability = make.capability(free_memory_bytes=3_000_000_000)
    assert (await anna.offer()).fencing == 2


async def test_who_ran_out_of_memory_is_offered_smaller_work_and_the_peak_is_kept(api, make, anna):
    add_work(api, make, ffn_width=128)
    offer = await anna.start()
    release = Release(
        fencing=offer.fencing,
        reason="out_of_memory",
        detail="",
        checkpoint=None,
        peak_memory_bytes=345_678_901,
    )
    path = f"/v1/assignments/{offer.assignment}/release"
    assert (await anna.send("POST", path, release)).status_code == 200
    with api.ledger.read() as connection:
        (failed,) = queries.out_of_memory(connection)
    assert failed.peak_memory_bytes == 345_678_901
    assert failed.worker == anna.identity.peer_id
    add_work(api, make, ffn_width=192)
    api.pass_time(1.0)
    assert "ran out of" in (await anna.lease()).reason
    small = add_work(api, make, ffn_width=48)
    api.pass_time(1.0)
    assert (await anna.offer()).spec == small


async def test_estimates_of_memory_follow_what_accepted_work_took(api, make, anna, volunteer):
    spec = add_work(api, make)
    offer = await anna.start()
    submission = Submission(
        request_id=secrets.token_hex(16),
        fencing=offer.fencing,
        manifest=make.blob("manifest"),
        tokens_per_second=64.0,
        train_seconds=10.0,
        peak_memory_bytes=int(1.3 * estimate(spec, "cpu")) - 1,
    )
    path = f"/v1/assignments/{offer.assignment}/submit"
    assert (await anna.send("POST", path, submission)).status_code == 200
    collect(api, make, spec, anna)
    later = add_work(api, make, ffn_width=96)
    tight = volunteer("tight", free_memory_bytes=int(1.2 * estimate(later, "cpu")))
    await tight.register()
    await tight.release(await tight.offer())
    verify(api, offer, Accepted())
    api.pass_time(20.0)
    answer = await tight.lease()
    assert answer.offer is None
    assert "(1.30 of the estimate, as measured)" in answer.reason


async def test_what_does_not_fit_is_refused_with_the_figures(api, make, volunteer):
    add_work(api, make)
    small = volunteer("small", free_memory_bytes=100_000_000)
    await small.register()
    answer = await small.lease()
    assert answer.offer is None
    assert "you have 100 MB" in answer.reason


async def test_an_expert_is_not_offered_before_its_parent_is_accepted(api, make, anna, bert):
    seed = add_work(api, make)
    add_work(api, make, parent=seed.digest)
    await anna.start()
    answer = await bert.lease()
    assert answer.offer is None
    assert "1 more wait for their parent" in answer.reason


async def test_an_expert_of_a_made_parent_is_offered_once_that_is_there(api, make, anna):
    trained = make.spec()
    none = trained.train.model_copy(update={"num_steps": 0})
    values = {**dict(trained), "kind": "pretrained", "origin": "ab" * 32, "train": none}
    parent = type(trained).model_validate(values)
    add_work(api, make, parent=parent.digest)
    await anna.register()
    assert (await anna.lease()).offer is None
    with api.ledger.begin() as connection:
        queries.add_made(
            connection,
            parent,
            manifest=make.manifest(parent, api.identity.peer_id),
            manifest_ref=make.blob("manifest"),
            shard=make.blob("python train"),
            now=api.clock(),
        )
    api.tick()
    offer = (await anna.lease()).offer
    assert offer.parent.manifest.spec == parent.digest
    shown = (await api.http.get("/v1/experts")).json()
    assert api.identity.peer_id in str(shown)


async def test_a_finished_run_says_so(api, anna):
    with api.ledger.begin() as connection:
        queries.set_phase(connection, "finished", "", api.clock())
    assert (await anna.lease()).finished
