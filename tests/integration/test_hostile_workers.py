"""What one hostile worker can do to the others through the real app: little, and not for long."""

import secrets
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from coordinator.api.tokens import new_token
from coordinator.ledger import queries
from coordinator.ledger.workers import Registration
from coordinator.lifecycle import LEASE_INTERVALS, MAX_UNCOLLECTED, MIN_COLLECT_SECONDS
from coordinator.scoring.verification import Accepted, Inconclusive, Rejected
from protocol.digests import digest_bytes
from protocol.messages import (
    Acknowledge,
    AssignmentHeartbeat,
    LeaseAnswer,
    LeaseRequest,
    Offer,
    Release,
    Submission,
    WorkerHeartbeat,
)
from shared.identity import Identity


class Guest:
    """A registered worker that says what it likes."""

    def __init__(self, api: Any, make: Any, identity: Identity, **capability: Any) -> None:
        self.api, self.make = api, make
        self.worker = identity.peer_id
        self.capability = make.capability(**capability)
        self.token = new_token(api.settings.token_key)
        with api.ledger.begin() as connection:
            queries.register_worker(
                connection,
                Registration(
                    worker=self.worker,
                    name="",
                    software_version="0",
                    capability=self.capability,
                    maddrs=(),
                    token_digest=digest_bytes(self.token.encode()),
                    token_expires_at=1e12,
                    certificate_expires_at=1e12,
                    allowed_at=0.0,
                ),
                api.clock(),
            )

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self.api.http.post(
            f"/v1/{path}",
            content=body.model_dump_json(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )

    async def ask(self) -> LeaseAnswer:
        request = LeaseRequest(request_id=secrets.token_hex(16), capability=self.capability)
        response = await self.post("assignments/lease", request)
        assert response.status_code == 200, response.text
        return LeaseAnswer.model_validate_json(response.content)

    async def start(self) -> Offer:
        answer = await self.ask()
        assert answer.offer is not None, answer.reason
        path = f"assignments/{answer.offer.assignment}/acknowledge"
        assert (await self.post(path, Acknowledge(fencing=answer.offer.fencing))).is_success
        return answer.offer

    async def beat(self, offer: Offer, step: int, *, checkpoint: Any = None, **more: Any) -> Any:
        values = {"loss": 3.0, "tokens_per_second": 64.0, "checkpoint_step": step, **more}
        return await self.post(
            f"assignments/{offer.assignment}/heartbeat",
            AssignmentHeartbeat(fencing=offer.fencing, step=step, checkpoint=checkpoint, **values),
        )

    async def submit(self, offer: Offer, manifest: Any) -> httpx.Response:
        return await self.post(
            f"assignments/{offer.assignment}/submit",
            Submission(
                request_id=secrets.token_hex(16),
                fencing=offer.fencing,
                manifest=manifest,
                tokens_per_second=64.0,
                train_seconds=10.0,
            ),
        )

    async def release(self, offer: Offer, reason: str) -> httpx.Response:
        return await self.post(
            f"assignments/{offer.assignment}/release",
            Release(fencing=offer.fencing, reason=reason, detail="", checkpoint=None),
        )

    async def live(self, seconds: float) -> None:
        """Time passes, and this worker shows that it lives."""
        until = self.api.clock() + seconds
        while self.api.clock() < until:
            pass_quickly(self.api, 100.0)
            await self.post(
                "workers/heartbeat", WorkerHeartbeat(capability=self.capability, maddrs=())
            )


def pass_quickly(api: Any, seconds: float) -> None:
    """Time passes with as few ticks as do not count as downtime."""
    until = api.clock() + seconds
    while api.clock() < until:
        api.clock.advance(min(9.0, until - api.clock()))
        api.tick()


@pytest.fixture
def guest(api, make, tmp_path):
    def build(name: str, **capability: Any) -> Guest:
        return Guest(api, make, Identity.create(tmp_path / name / "worker.key"), **capability)

    return build


def add_work(api, make, **changes: Any):
    spec = make.spec(**changes)
    with api.ledger.begin() as connection:
        shard = make.shard(spec.domain, "train").blob
        queries.add_assignment(connection, spec, shard=shard, schemes=("a",), now=api.clock())
    return spec


def make_durable(api, make, spec, worker: str, *, step: int | None = None) -> tuple[str, ...]:
    """The network role's part."""
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        manifest = make.manifest(spec, worker, step=step)
        return queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())


async def poisoned(api, make, spec, mallory: Guest) -> None:
    """A durable checkpoint of mallory's at step 5, and its lease given back."""
    offer = await mallory.start()
    await mallory.beat(offer, 5, checkpoint=make.blob("poison"))
    make_durable(api, make, spec, mallory.worker, step=5)
    await mallory.release(offer, "stopped")
    pass_quickly(api, 5.0)


async def test_made_up_submissions_neither_pile_up_nor_hold_their_assignments_for_ever(
    api, make, guest
):
    for rng_seed in range(4):
        add_work(api, make, rng_seed=rng_seed)
    mallory = guest("mallory")
    offers = []
    for number in range(MAX_UNCOLLECTED + 1):
        offers.append(await mallory.start())
        assert (await mallory.submit(offers[-1], make.blob(f"made up {number}"))).is_success
    refused = await mallory.ask()
    assert refused.offer is None
    assert "wait to be collected" in refused.reason
    await mallory.live(MIN_COLLECT_SECONDS + 100.0)
    with api.ledger.read() as connection:
        rows = [queries.get_assignment(connection, offer.assignment) for offer in offers]
        assert queries.announced_checkpoints(connection) == []
    assert [row.state for row in rows] == ["open"] * len(offers)
    assert all(row.standing.excluded == {mallory.worker} for row in rows)


async def test_naming_another_workers_manifest_first_takes_nothing_from_it(api, make, guest):
    spec = add_work(api, make)
    mallory, bert = guest("mallory"), guest("bert")
    old = await mallory.start()
    api.pass_time(40.0)
    offer = await bert.start()
    stolen = make.blob("bert's expert")
    assert not (await mallory.submit(old, stolen)).is_success
    assert (await bert.submit(offer, stolen)).is_success
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        assert row.worker == bert.worker
        manifest = make.manifest(spec, bert.worker)
        queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())
        (submission,) = queries.durable_submissions(connection)
    assert submission.worker == bert.worker


async def test_descending_checkpoints_do_not_pile_up(api, make, guest):
    add_work(api, make)
    mallory = guest("mallory")
    offer = await mallory.start()
    for step in range(20, 10, -1):
        assert (await mallory.beat(offer, step, checkpoint=make.blob(f"step {step}"))).is_success
    with api.ledger.read() as connection:
        (row,) = queries.announced_checkpoints(connection)
    assert row.manifest == make.blob("step 11")
    beyond = await mallory.beat(offer, 21, checkpoint=make.blob("beyond"))
    assert beyond.status_code == 422
    assert "checkpoint_step: 21, expected at most 20" in beyond.text


async def test_a_checkpoint_that_nobody_could_collect_is_given_up_in_the_end(api, make, guest):
    add_work(api, make)
    mallory = guest("mallory")
    offer = await mallory.start()
    await mallory.beat(offer, 5, checkpoint=make.blob("made up"))
    pass_quickly(api, MIN_COLLECT_SECONDS - 10.0)
    with api.ledger.read() as connection:
        assert len(queries.announced_checkpoints(connection)) == 1
    api.pass_time(10.0)
    with api.ledger.read() as connection:
        assert queries.announced_checkpoints(connection) == []


@pytest.mark.parametrize("decision", [Rejected("worse"), Inconclusive("not told apart")])
async def test_a_poisoned_checkpoint_is_held_against_its_author_alone(api, make, guest, decision):
    spec = add_work(api, make)
    mallory, bert = guest("mallory"), guest("bert")
    await poisoned(api, make, spec, mallory)
    offer = await bert.start()
    assert offer.resume is not None
    await bert.submit(offer, make.blob("expert"))
    make_durable(api, make, spec, bert.worker)
    with api.ledger.begin() as connection:
        queries.record_verification(
            connection, offer.assignment, offer.fencing, decision, "worse", api.clock()
        )
        row = queries.get_assignment(connection, offer.assignment)
    assert row.standing.excluded == {mallory.worker}
    pass_quickly(api, 5.0)
    assert (await bert.start()).resume is None


async def test_a_checkpoint_on_which_training_fails_at_once_is_dropped(api, make, guest):
    spec = add_work(api, make)
    mallory, bert = guest("mallory"), guest("bert")
    await poisoned(api, make, spec, mallory)
    offer = await bert.start()
    await bert.beat(offer, 5)
    await bert.release(offer, "trainer_failed")
    with api.ledger.read() as connection:
        row = queries.get_assignment(connection, offer.assignment)
    assert row.standing.excluded == {mallory.worker}
    pass_quickly(api, 5.0)
    offer = await bert.start()
    assert offer.resume is None
    await bert.beat(offer, 3, checkpoint=make.blob("sound"))
    freed = make_durable(api, make, spec, bert.worker, step=3)
    assert make.blob("poison").digest in freed


async def test_a_training_that_failed_after_progress_accuses_nobody(api, make, guest):
    spec = add_work(api, make)
    anna, bert = guest("anna"), guest("bert")
    await poisoned(api, make, spec, anna)
    offer = await bert.start()
    await bert.beat(offer, 6)
    await bert.release(offer, "trainer_failed")
    with api.ledger.read() as connection:
        row = queries.get_assignment(connection, offer.assignment)
        assert queries.resume_of(connection, offer.assignment, None) is not None
    assert row.standing.excluded == frozenset()


async def test_a_checkpoint_that_ruins_the_trainings_of_several_is_dropped(api, make, guest):
    spec = add_work(api, make)
    mallory, bert, carl = guest("mallory"), guest("bert"), guest("carl")
    await poisoned(api, make, spec, mallory)
    for number, worker in enumerate((bert, bert, carl), start=1):
        offer = await worker.start()
        assert offer.resume is not None
        await worker.beat(offer, 5 + number)
        await worker.release(offer, "diverged")
        with api.ledger.read() as connection:
            row = queries.get_assignment(connection, offer.assignment)
        assert row.standing.excluded == ({mallory.worker} if worker is carl else frozenset())
        pass_quickly(api, 15.0)
    assert (await bert.start()).resume is None


@pytest.mark.parametrize("speed", [5e-324, 1e308])
async def test_no_speed_that_a_worker_tells_breaks_the_status(api, make, guest, speed):
    with pytest.raises(ValidationError, match="flops_per_second"):
        make.capability(flops_per_second=speed)
    add_work(api, make)
    mallory = guest("mallory")
    offer = await mallory.start()
    assert (await mallory.beat(offer, 1, tokens_per_second=speed)).is_success
    api.pass_time(1.0)
    status = await api.http.get("/v1/status")
    assert status.status_code == 200
    assert 0 < status.json()["eta_seconds"] < 1e6


async def test_steps_that_go_back_and_forth_are_no_progress(api, make, guest):
    add_work(api, make)
    mallory = guest("mallory")
    offer = await mallory.start()
    await mallory.beat(offer, 3)
    first = api.clock()
    for step in (2, 3, 99):
        api.pass_time(1.0)
        assert (await mallory.beat(offer, step, checkpoint_step=0)).is_success
    with api.ledger.read() as connection:
        (attempt,) = queries.live_attempts(connection)
    assert (attempt.step, attempt.progressed_at) == (3, first)


@pytest.mark.parametrize("proven", [False, True])
async def test_a_boaster_starves_nobody_for_longer_than_a_lease(api, make, guest, proven):
    boaster, honest = guest("boaster", flops_per_second=1e16), guest("honest")
    if proven:
        proof = add_work(api, make, rng_seed=2)
        offer = await boaster.start()
        await boaster.submit(offer, make.blob("proof"))
        make_durable(api, make, proof, boaster.worker)
        with api.ledger.begin() as connection:
            queries.record_verification(
                connection, offer.assignment, offer.fencing, Accepted(), "", api.clock()
            )
    for rng_seed in range(2):
        add_work(api, make, rng_seed=rng_seed)
    await boaster.start()
    since = api.clock()
    while (answer := await honest.ask()).offer is None:
        assert api.clock() - since <= LEASE_INTERVALS * api.settings.heartbeat_seconds
        pass_quickly(api, answer.retry_after_seconds)


async def test_workers_that_left_are_not_counted_on_unless_they_hold_a_lease(api, make, guest):
    add_work(api, make)
    gone, here = guest("gone"), guest("here")
    await gone.ask()
    await here.live(300.0)
    with api.ledger.read() as connection:
        active = queries.active_workers(connection, since=api.clock() - 30.0)
        assert [row.worker for row in active] == [here.worker]
        everybody = {row.worker for row in queries.some_workers(connection)}
    assert everybody == {gone.worker, here.worker}


async def test_asking_whether_the_run_is_ready_writes_nothing(api):
    with api.ledger.read() as connection:
        before = queries.role_beats(connection)
    api.clock.advance(1.0)
    await api.http.get("/readyz")
    with api.ledger.read() as connection:
        assert queries.role_beats(connection) == before


async def test_the_status_says_which_work_every_worker_here_is_excluded_from(api, make, guest):
    spec = add_work(api, make)
    anna = guest("anna")
    offer = await anna.start()
    await anna.submit(offer, make.blob("expert"))
    make_durable(api, make, spec, anna.worker)
    with api.ledger.begin() as connection:
        queries.record_verification(
            connection, offer.assignment, offer.fencing, Rejected("worse"), "worse", api.clock()
        )
    api.pass_time(1.0)
    reason = (await api.http.get("/v1/status")).json()["phase_reason"]
    assert f"{offer.assignment} (64-wide python seed) waits for another worker" in reason
    await guest("bert").ask()
    api.pass_time(1.0)
    assert (await api.http.get("/v1/status")).json()["phase_reason"] == ""
