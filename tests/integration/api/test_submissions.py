"""What becomes of work that is handed in: collected, accepted, refused, or a spare."""

import secrets

import pytest

from coordinator.ledger import queries
from coordinator.scoring.verification import Accepted, Inconclusive, Rejected
from protocol.errors import ErrorCode
from protocol.messages import (
    AssignmentHeartbeatAnswer,
    LeaseState,
    WorkerHeartbeat,
)
from tests.integration.api.volunteer import (
    add_work,
    collect,
    refusal,
    verify,
)


async def test_an_expert_is_registered_leased_trained_collected_and_accepted(api, make, anna):
    seed = add_work(api, make)
    expert = add_work(api, make, parent=seed.digest, num_steps=10)
    offer = await anna.offer()
    assert offer.spec == seed
    assert offer.expires_in == 20.0
    assert "you finish it in time" in offer.reason
    state = LeaseState.model_validate_json((await anna.acknowledge(offer)).content)
    assert (state.state, state.lease_seconds) == ("running", 30.0)

    api.pass_time(8.0)
    training = make.blob("training manifest")
    answer = AssignmentHeartbeatAnswer.model_validate_json(
        (await anna.beat(offer, 5, training)).content
    )
    assert (answer.lease_seconds, answer.durable_step) == (30.0, None)
    collect(api, make, seed, anna, step=5)
    answer = AssignmentHeartbeatAnswer.model_validate_json((await anna.beat(offer, 7)).content)
    assert answer.durable_step == 5
    assert training.digest in answer.durable

    manifest = make.blob("expert manifest")
    assert (await anna.submit(offer, manifest)).json()["state"] == "submitted"
    collect(api, make, seed, anna)
    with api.ledger.read() as connection:
        (submission,) = queries.durable_submissions(connection)
    assert submission.spec == seed
    deletable = verify(api, offer, Accepted())
    training_files = make.manifest(seed, anna.identity.peer_id, step=5).files
    assert set(deletable) == {training.digest, *(file.blob.digest for file in training_files)}

    child = await anna.offer()
    assert child.spec == expert
    assert child.parent is not None
    assert child.parent.manifest == make.manifest(seed, anna.identity.peer_id)
    (view,) = (await anna.send("GET", "/v1/experts")).json()
    assert view["manifest"] == manifest.digest
    with api.ledger.read() as connection:
        kinds = [entry.kind for entry in queries.read_entries(connection)]
    setting_up = ("run", "shard", "phase", "plan", "register")
    assert [kind for kind in kinds if kind not in setting_up] == [
        "offer", "acknowledge", "announce", "durable", "submit", "durable", "accept", "offer",
    ]  # fmt: skip


async def test_a_late_submission_is_a_spare_and_never_canonical(api, make, anna, bert):
    spec = add_work(api, make)
    lost = await anna.start()
    api.pass_time(32.0)
    offer = await bert.start()
    late = await anna.submit(lost, make.blob("late"))
    refusal(late, ErrorCode.LEASE_LOST)
    with api.ledger.read() as connection:
        assert queries.announced_checkpoints(connection) == []
        kinds = [entry.kind for entry in queries.read_entries(connection)]
    assert kinds.count("spare") == 1
    assert (await bert.submit(offer, make.blob("mine"))).status_code == 200
    collect(api, make, spec, bert)
    verify(api, offer, Accepted())
    with api.ledger.read() as connection:
        assert queries.accepted(connection)[spec.digest].worker == bert.identity.peer_id


async def test_a_submission_may_be_repeated(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    request_id, manifest = secrets.token_hex(16), make.blob("expert")
    first = await anna.submit(offer, manifest, request_id)
    assert (await anna.submit(offer, manifest, request_id)).json() == first.json()
    assert (await anna.submit(offer, manifest)).json()["state"] == "submitted"
    refusal(await anna.submit(offer, make.blob("other"), request_id), ErrorCode.REQUEST_REUSED)
    refusal(await anna.submit(offer, make.blob("other")), ErrorCode.WRONG_STATE)
    with api.ledger.read() as connection:
        assert len(queries.announced_checkpoints(connection)) == 1


@pytest.mark.parametrize("decision", [Rejected("worse"), Inconclusive("not told apart")])
async def test_what_is_not_accepted_starts_afresh_with_another_worker(
    api, make, anna, bert, decision
):
    spec = add_work(api, make)
    offer = await anna.start()
    await anna.beat(offer, 8, make.blob("eight"))
    collect(api, make, spec, anna, step=8)
    await anna.submit(offer, make.blob("expert"))
    collect(api, make, spec, anna)
    verify(api, offer, decision)
    (view,) = (await anna.send("GET", "/v1/assignments")).json()
    assert view["state"] == "open"
    assert view["reason"].endswith(decision.reason)
    api.pass_time(1.0)
    answer = await anna.lease()
    assert answer.offer is None
    assert "not accepted" in answer.reason
    fresh = await bert.offer()
    assert fresh.resume is None


async def test_a_refused_submission_is_open_for_others(api, make, anna, bert):
    add_work(api, make)
    offer = await anna.start()
    await anna.submit(offer, make.blob("expert"))
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        queries.mark_refused(connection, row.checkpoint_id, "header", api.clock())
    api.pass_time(1.0)
    assert (await anna.lease()).offer is None
    assert (await bert.offer()).fencing == 2


async def test_the_ledger_says_from_which_step_on_bits_are_not_the_specs(api, make, anna):
    spec = add_work(api, make)
    offer = await anna.start()
    assert (await anna.submit(offer, make.blob("manifest"))).status_code == 200
    manifest = make.manifest(spec, anna.identity.peer_id)
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        inexact = manifest.model_copy(update={"inexact_from": 7})
        queries.mark_durable(connection, row.checkpoint_id, inexact, api.clock())
        last = queries.read_entries(connection)[-1]
    assert last.kind == "durable"
    assert last.facts["inexact_from"] == 7


async def test_an_uncollected_submission_outlives_its_worker_for_a_while_only(
    api, make, anna, bert
):
    add_work(api, make)
    offer = await anna.start()
    await anna.submit(offer, make.blob("expert"))
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    api.pass_time(250.0)
    await anna.send("POST", "/v1/workers/heartbeat", beat)
    api.pass_time(250.0)
    assert (await bert.lease()).offer is None
    api.pass_time(60.0)
    assert (await bert.offer()).fencing == 2
