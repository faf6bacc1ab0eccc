"""The real client's requests against the real app, over a ledger on disk and a clock that waits."""

import asyncio
import secrets
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from coordinator.api.app import create_app
from coordinator.api.auth import invite_token
from coordinator.footprint import estimate
from coordinator.ledger import queries, tables
from coordinator.scoring.verification import Accepted, Inconclusive, Rejected
from protocol import PROTOCOL_VERSION
from protocol.digests import digest_value
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import (
    Acknowledge,
    AssignmentHeartbeat,
    AssignmentHeartbeatAnswer,
    BlobUrl,
    HeartbeatAnswer,
    LeaseAnswer,
    LeaseRequest,
    LeaseState,
    Offer,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
    Release,
    ResultTable,
    RunInfo,
    StatusView,
    Submission,
    TableRow,
    WorkerHeartbeat,
)
from protocol.versions import HEADER, KEPT
from shared.identity import Identity, certificate_valid
from shared.version import SOFTWARE_VERSION


class Volunteer:
    """A worker's side of the conversation."""

    def __init__(self, api, identity: Identity, capability) -> None:
        self.api = api
        self.identity = identity
        self.capability = capability
        self.token: str | None = None

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        content = None if body is None else body.model_dump_json()
        if content is not None:
            headers["Content-Type"] = "application/json"
        return await self.api.http.request(method, path, content=content, headers=headers)

    async def registration(self, **changes: Any) -> RegisterRequest:
        nonce = (await self.send("POST", "/v1/workers/challenge")).json()["nonce"]
        statement = RegistrationStatement(
            purpose="hdee-register-v1",
            coordinator=self.api.identity.peer_id,
            run=changes.pop("signed_run", "test"),
            worker=self.identity.peer_id,
            nonce=nonce,
            capability=digest_value(self.capability),
            protocol_version=changes.pop("signed_version", PROTOCOL_VERSION),
        )
        values = {
            "worker": self.identity.peer_id,
            "nonce": nonce,
            "capability": self.capability,
            "protocol_version": PROTOCOL_VERSION,
            "software_version": "0",
            "maddrs": (),
            "signature": self.identity.sign(statement.signed_bytes()),
        }
        return RegisterRequest(**{**values, **changes})

    async def register(self) -> RegisterAnswer:
        response = await self.send("POST", "/v1/workers/register", await self.registration())
        answer = RegisterAnswer.model_validate_json(response.content)
        self.token = answer.token
        return answer

    async def lease(self, request_id: str | None = None) -> LeaseAnswer:
        request = LeaseRequest(
            request_id=request_id or secrets.token_hex(16), capability=self.capability
        )
        response = await self.send("POST", "/v1/assignments/lease", request)
        assert response.status_code == 200, response.text
        return LeaseAnswer.model_validate_json(response.content)

    async def offer(self) -> Offer:
        answer = await self.lease()
        assert answer.offer is not None, answer.reason
        return answer.offer

    async def acknowledge(self, offer: Offer) -> httpx.Response:
        path = f"/v1/assignments/{offer.assignment}/acknowledge"
        return await self.send("POST", path, Acknowledge(fencing=offer.fencing))

    async def start(self) -> Offer:
        offer = await self.offer()
        assert (await self.acknowledge(offer)).status_code == 200
        return offer

    async def beat(
        self, offer: Offer, step: int, checkpoint=None, first_step: int | None = None
    ) -> httpx.Response:
        return await self.send(
            "POST",
            f"/v1/assignments/{offer.assignment}/heartbeat",
            AssignmentHeartbeat(
                fencing=offer.fencing,
                step=step,
                loss=3.0,
                tokens_per_second=64.0,
                checkpoint=checkpoint,
                checkpoint_step=step if checkpoint else 0,
                first_step=first_step,
            ),
        )

    async def submit(self, offer: Offer, manifest, request_id=None) -> httpx.Response:
        return await self.send(
            "POST",
            f"/v1/assignments/{offer.assignment}/submit",
            Submission(
                request_id=request_id or secrets.token_hex(16),
                fencing=offer.fencing,
                manifest=manifest,
                tokens_per_second=64.0,
                train_seconds=10.0,
            ),
        )

    async def release(self, offer: Offer, *, reason="stopped", checkpoint=None, step=0):
        return await self.send(
            "POST",
            f"/v1/assignments/{offer.assignment}/release",
            Release(
                fencing=offer.fencing,
                reason=reason,
                detail="",
                checkpoint=checkpoint,
                checkpoint_step=step,
            ),
        )


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


def refusal(response: httpx.Response, code: ErrorCode) -> ErrorBody:
    body = ErrorBody.model_validate_json(response.content)
    assert body.code is code, body
    assert response.status_code == HTTP_STATUS[code]
    return body


def add_work(api, make, **spec: Any):
    made = make.spec(**spec)
    with api.ledger.begin() as connection:
        shard = make.shard(made.domain, "train").blob
        queries.add_assignment(connection, made, shard=shard, schemes=("MHo-IHo",), now=api.clock())
    return made


def collect(api, make, spec, worker, *, step: int | None = None) -> tuple[str, ...]:
    """The network role's part: bring the one checkpoint that is announced."""
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        manifest = make.manifest(spec, worker.identity.peer_id, step=step)
        return queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())


def verify(api, offer: Offer, decision) -> tuple[str, ...]:
    """The scorer's part."""
    with api.ledger.begin() as connection:
        return queries.record_verification(
            connection,
            offer.assignment,
            offer.fencing,
            decision,
            decision.reason,
            api.clock(),
        )


def allowed(api, digest: str, worker: Volunteer) -> bool:
    with api.ledger.read() as connection:
        return queries.may_read(connection, digest, worker.identity.peer_id)


async def finish(api, make, worker: Volunteer, spec) -> Offer:
    offer = await worker.start()
    assert offer.spec == spec
    response = await worker.submit(offer, make.blob(f"{spec.digest} manifest"))
    assert response.status_code == 200, response.text
    collect(api, make, spec, worker)
    verify(api, offer, Accepted())
    return offer


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


async def test_a_certificate_from_registration_is_the_coordinators(api, anna):
    signed = (await anna.register()).certificate
    known = {"coordinator": api.identity.peer_id, "run": "test", "now": api.clock()}
    assert certificate_valid(signed, peer=anna.identity.peer_id, **known)
    assert not certificate_valid(signed, peer=api.identity.peer_id, **known)
    forged = signed.model_copy(update={"signature": "0" * 128})
    assert not certificate_valid(forged, peer=anna.identity.peer_id, **known)


async def test_a_replayed_nonce_is_refused(anna):
    request = await anna.registration()
    assert (await anna.send("POST", "/v1/workers/register", request)).status_code == 200
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_nonce_lives_for_a_minute(api, anna):
    request = await anna.registration()
    api.clock.advance(60.0)
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_forged_signature_is_refused_and_writes_nothing(api, anna, bert):
    def written():
        with api.ledger.read() as connection:
            nonces = set(connection.execute(select(tables.nonces.c.nonce)).scalars())
            return nonces, queries.last_number(connection)

    before = written()
    stolen = await anna.registration(worker=bert.identity.peer_id)
    for _ in range(2):
        refusal(await anna.send("POST", "/v1/workers/register", stolen), ErrorCode.BAD_SIGNATURE)
    assert written() == before
    assert stolen.nonce not in before[0]


async def test_a_nonce_that_the_api_did_not_make_is_refused(anna):
    request = await anna.registration(nonce=secrets.token_hex(32))
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.UNKNOWN_NONCE)


async def test_a_registration_signed_for_another_run_is_refused(anna):
    request = await anna.registration(signed_run="other")
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.BAD_SIGNATURE)


async def test_another_protocol_version_is_told_what_to_install(anna):
    request = await anna.registration(protocol_version=PROTOCOL_VERSION + 1)
    body = refusal(
        await anna.send("POST", "/v1/workers/register", request), ErrorCode.PROTOCOL_VERSION
    )
    assert f"pip install 'hdee=={SOFTWARE_VERSION}'" in body.message


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (str(PROTOCOL_VERSION + 1), ErrorCode.PROTOCOL_VERSION),
        ("latest", ErrorCode.BAD_REQUEST),
    ],
)
async def test_every_request_is_checked_for_the_version_that_it_names(api, anna, header, code):
    for method, path in (("POST", "/v1/assignments/lease"), ("GET", "/v1/domains")):
        answer = await api.http.request(method, path, headers={HEADER: header})
        assert "rotocol" in refusal(answer, code).message
    info = await api.http.get("/v1/run", headers={HEADER: header})
    assert RunInfo.model_validate_json(info.content).protocol_version == PROTOCOL_VERSION


@pytest.mark.parametrize("version", range(max(1, PROTOCOL_VERSION - KEPT), PROTOCOL_VERSION + 1))
async def test_a_worker_of_a_version_that_is_kept_registers(anna, version):
    request = await anna.registration(protocol_version=version, signed_version=version)
    assert (await anna.send("POST", "/v1/workers/register", request)).status_code == 200


@pytest.mark.parametrize(
    "api_settings", [{"enrolment": "invite"}], indirect=True, ids=["by invite"]
)
async def test_a_run_by_invite_wants_the_invite(api, volunteer):
    worker = volunteer("stranger")
    for invite in (None, "guess"):
        request = await worker.registration(invite=invite)
        response = await worker.send("POST", "/v1/workers/register", request)
        refusal(response, ErrorCode.INVITE_REQUIRED)
    request = await worker.registration(invite=invite_token(api.identity))
    assert (await worker.send("POST", "/v1/workers/register", request)).status_code == 200


async def test_a_banned_worker_is_told_so(api, anna):
    with api.ledger.begin() as connection:
        queries.mark_worker(connection, anna.identity.peer_id, "ban", reason="", now=api.clock())
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.BANNED)
    request = await anna.registration()
    refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.BANNED)


@pytest.mark.parametrize("api_settings", [{"trust": ()}], indirect=True, ids=["nobody trusted"])
async def test_a_seed_is_kept_for_trusted_workers(api, make, anna):
    add_work(api, make)
    assert "marked trusted" in (await anna.lease()).reason


async def test_members_that_can_be_dialled_are_named_to_members_only(api, anna):
    own = (f"/ip4/192.0.2.1/tcp/4001/p2p/{api.identity.peer_id}",)
    with api.ledger.begin() as connection:
        queries.set_network(connection, maddrs=own, blob_url="http://a", now=api.clock())
    there = f"/ip4/192.0.2.2/tcp/4001/p2p/{anna.identity.peer_id}"
    elsewhere = f"/ip4/192.0.2.3/tcp/4001/p2p/{api.identity.peer_id}"

    async def named_after(maddrs):
        beat = WorkerHeartbeat(capability=anna.capability, maddrs=maddrs)
        assert (await anna.send("POST", "/v1/workers/heartbeat", beat)).status_code == 200
        run = await anna.send("GET", "/v1/run")
        return RunInfo.model_validate_json(run.content).bootstrap

    assert await named_after(()) == own
    assert await named_after((there,)) == (*own, there)
    assert (await anna.register()).bootstrap == own, "a registration names nobody yet"
    assert await named_after((elsewhere,)) == own
    assert await named_after((there,)) == (*own, there)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app)) as stranger:
        run = await stranger.get("http://api/v1/run")
    assert RunInfo.model_validate_json(run.content).bootstrap == own
    api.clock.advance(3 * 10 + 1)
    run = await anna.send("GET", "/v1/run")
    assert RunInfo.model_validate_json(run.content).bootstrap == own


async def test_registering_again_replaces_the_token(anna):
    old = anna.token
    await anna.register()
    new, anna.token = anna.token, old
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.UNKNOWN_TOKEN)
    anna.token = new
    assert (await anna.send("POST", "/v1/workers/heartbeat", beat)).status_code == 200


async def test_a_token_expires_unless_heartbeats_prolong_it(api, anna):
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    certificates = []
    for _ in range(3):
        api.clock.advance(1500.0)
        response = await anna.send("POST", "/v1/workers/heartbeat", beat)
        certificates.append(HeartbeatAnswer.model_validate_json(response.content).certificate)
    assert certificates[0] is None
    assert certificates[1] is not None
    api.clock.advance(3600.0)
    refusal(await anna.send("POST", "/v1/workers/heartbeat", beat), ErrorCode.EXPIRED_TOKEN)


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


async def test_acknowledge_and_release_may_be_repeated(api, make, anna):
    add_work(api, make)
    offer = await anna.start()
    assert (await anna.acknowledge(offer)).status_code == 200
    for _ in range(2):
        assert (await anna.release(offer)).json()["state"] == "open"


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


async def test_a_sealed_blob_is_given_to_nobody(api, make, anna):
    add_work(api, make)
    await anna.start()
    for split in ("gate", "test"):
        digest = make.shard("python", split).blob.digest
        refusal(await anna.send("GET", f"/v1/blobs/{digest}"), ErrorCode.UNKNOWN_BLOB)
        refusal(await anna.send("GET", f"/v1/blobs/{digest}/upload"), ErrorCode.UNKNOWN_BLOB)


async def test_a_checkpoint_that_names_a_sealed_blob_does_not_open_it(api, make, anna):
    spec = add_work(api, make)
    offer = await anna.start()
    sealed = make.shard("python", "gate").blob
    honest = make.manifest(spec, anna.identity.peer_id, step=4)
    first, *others = honest.files
    crafted = honest.model_copy(
        update={"files": (first.model_copy(update={"blob": sealed}), *others)}
    )
    await anna.beat(offer, 4, make.blob("four"))
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        queries.mark_durable(connection, row.checkpoint_id, crafted, api.clock())
    assert allowed(api, others[0].blob.digest, anna)
    assert not allowed(api, sealed.digest, anna)


async def test_a_public_shard_is_behind_a_signed_url_and_a_token(api, make, anna):
    digest = make.shard("python", "train").blob.digest
    response = await anna.send("GET", f"/v1/blobs/{digest}")
    assert response.status_code == 307
    assert response.headers["location"].startswith(f"http://127.0.0.1:9/blobs/{digest}?")
    anna.token = None
    refusal(await anna.send("GET", f"/v1/blobs/{digest}"), ErrorCode.UNKNOWN_TOKEN)


async def test_only_the_asked_worker_may_upload_a_wanted_blob(api, make, anna, bert):
    add_work(api, make)
    offer = await anna.start()
    await anna.beat(offer, 4, make.blob("four"))
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        queries.want_blobs(connection, row.checkpoint_id, [row.manifest], api.clock())
    response = AssignmentHeartbeatAnswer.model_validate_json((await anna.beat(offer, 5)).content)
    assert response.wanted == (make.blob("four"),)
    path = f"/v1/blobs/{make.blob('four').digest}/upload"
    BlobUrl.model_validate_json((await anna.send("GET", path)).content)
    refusal(await bert.send("GET", path), ErrorCode.UNKNOWN_BLOB)


async def test_the_public_views_show_the_run(api, make, anna, bert):
    seed = add_work(api, make)
    await finish(api, make, anna, seed)
    api.pass_time(1.0)
    expert = add_work(api, make, parent=seed.digest)
    await bert.start()
    table = ResultTable(
        columns=("seed",),
        rows=(TableRow(domain="python", perplexity={"seed": 9.0}, bits_per_byte={"seed": 1.5}),),
    )
    refusal(await anna.send("GET", "/v1/results"), ErrorCode.NOT_FOUND)
    with api.ledger.begin() as connection:
        queries.record_results(connection, table, api.clock())
        queries.set_domain_class(connection, "python", "easy", 12.5, now=api.clock())
        for split, perplexity in (("dev", 12.5), ("test", 99.0)):
            queries.record_evaluation(
                connection,
                spec_digest=seed.digest,
                shard_digest=make.shard("python", split).blob.digest,
                mean_log_likelihood=-2.5,
                perplexity=perplexity,
                bits_per_byte=1.5,
                now=api.clock(),
            )
        queries.set_phase(connection, "scoring", "all accepted", api.clock())
    anna.token = bert.token = None
    info = RunInfo.model_validate_json((await anna.send("GET", "/v1/run")).content)
    assert (info.run, info.coordinator) == ("test", api.identity.peer_id)
    view = StatusView.model_validate_json((await anna.send("GET", "/v1/status")).content)
    assert (view.phase, view.experts_accepted, view.experts_planned) == ("scoring", 0, 1)
    assert view.assignments == {"accepted": 1, "running": 1}
    assert view.workers == {"idle": 1, "working": 1}
    assert (view.phase_age_seconds, view.results_age_seconds, view.round) == (0.0, 0.0, 1)
    assert [(row.checkpoint, row.domain, row.perplexity) for row in view.perplexities] == [
        (f"seed-ffn64-{seed.digest[:8]}", "python", 12.5)
    ]
    assert view.results == table
    assert view.eta_seconds is not None
    assert (await anna.send("GET", "/v1/results")).json()["columns"] == ["seed"]
    by_id = {row["worker"]: row for row in (await anna.send("GET", "/v1/workers")).json()}
    assert by_id[anna.identity.peer_id]["accepted"] == 1
    domains = (await anna.send("GET", "/v1/domains")).json()
    assert {row["domain"]: row["difficulty"] for row in domains} == {
        "python": "easy",
        "manuals": None,
    }
    rows = (await anna.send("GET", "/v1/assignments")).json()
    assert {row["spec"] for row in rows} == {seed.digest, expert.digest}
    assert [row["assignment"] for row in rows] == sorted(row["assignment"] for row in rows)


async def test_a_finished_run_says_so(api, anna):
    with api.ledger.begin() as connection:
        queries.set_phase(connection, "finished", "", api.clock())
    assert (await anna.lease()).finished


async def test_ready_means_that_every_role_is_alive(api):
    assert (await api.http.get("/healthz")).status_code == 200
    body = refusal(await api.http.get("/readyz"), ErrorCode.NOT_READY)
    assert "scorer" in body.message
    with api.ledger.begin() as connection:
        queries.beat_role(connection, "scorer", api.clock())
    assert (await api.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "code"),
    [
        ("GET", "/v1/nothing", None, ErrorCode.NOT_FOUND),
        ("DELETE", "/v1/run", None, ErrorCode.NOT_FOUND),
        ("POST", "/v1/workers/register", b"{", ErrorCode.BAD_REQUEST),
        ("POST", "/v1/workers/register", b'{"worker": 1}', ErrorCode.BAD_REQUEST),
        ("POST", "/v1/workers/register", b" " * 65_537, ErrorCode.BODY_TOO_LARGE),
        ("POST", "/v1/assignments/lease", b"{}", ErrorCode.UNKNOWN_TOKEN),
    ],
)
async def test_every_refusal_has_an_error_body(api, method, path, content, code):
    headers = {"Content-Type": "application/json"}
    refusal(await api.http.request(method, path, content=content, headers=headers), code)


async def test_a_bad_field_is_named_with_its_value_and_what_was_expected(api, anna):
    beat = WorkerHeartbeat(capability=anna.capability, maddrs=())
    body = beat.model_dump_json().replace('"num_threads":1', '"num_threads":0')
    response = await api.http.post(
        "/v1/workers/heartbeat",
        content=body,
        headers={"Authorization": f"Bearer {anna.token}", "Content-Type": "application/json"},
    )
    message = refusal(response, ErrorCode.BAD_REQUEST).message
    assert message.startswith("body.capability.num_threads: 0: ")
    assert "greater than or equal to 1" in message


async def test_an_unexpected_failure_shows_no_internals(api, anna, caplog):
    with api.ledger.begin() as connection:
        connection.exec_driver_sql("DROP TABLE nonces")
    request = await anna.registration()
    body = refusal(await anna.send("POST", "/v1/workers/register", request), ErrorCode.INTERNAL)
    assert "nonces" not in body.message


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
