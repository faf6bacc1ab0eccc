"""The operator's routes against the real app: who may use them, and what follows for workers."""

import secrets
from typing import Any

import httpx
import pytest

from coordinator.ledger import queries
from protocol import PROTOCOL_VERSION
from protocol.admin import AssignmentStanding, EntryView, RunPause, WhyView, WorkerMarks
from protocol.digests import digest_value
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import (
    AssignmentHeartbeat,
    LeaseAnswer,
    LeaseRequest,
    Offer,
    RegisterRequest,
    RegistrationStatement,
    WorkerHeartbeat,
)
from shared.identity import Identity

NOBODY = "12D3KooW" + "A" * 44


class Person:
    """Somebody with a token, a worker's or the operator's."""

    def __init__(self, api, token: str | None) -> None:
        self.api = api
        self.token = token

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        content = body if body is None or isinstance(body, str) else body.model_dump_json()
        if content is not None:
            headers["Content-Type"] = "application/json"
        return await self.api.http.request(method, path, content=content, headers=headers)

    async def order(self, path: str, reason: str = "a reason") -> httpx.Response:
        return await self.send("POST", f"/v1/admin/{path}", f'{{"reason": "{reason}"}}')


class Worker(Person):
    """A worker that asks and beats, and never trains."""

    def __init__(self, api, identity: Identity, capability) -> None:
        super().__init__(api, None)
        self.identity = identity
        self.id = identity.peer_id
        self.capability = capability

    async def register(self) -> httpx.Response:
        nonce = (await self.send("POST", "/v1/workers/challenge")).json()["nonce"]
        statement = RegistrationStatement(
            purpose="hdee-register-v1",
            coordinator=self.api.identity.peer_id,
            run="test",
            worker=self.id,
            nonce=nonce,
            capability=digest_value(self.capability),
            protocol_version=PROTOCOL_VERSION,
        )
        request = RegisterRequest(
            worker=self.id,
            nonce=nonce,
            capability=self.capability,
            protocol_version=PROTOCOL_VERSION,
            software_version="1.0",
            maddrs=(),
            signature=self.identity.sign(statement.signed_bytes()),
        )
        response = await self.send("POST", "/v1/workers/register", request)
        if response.status_code == 200:
            self.token = response.json()["token"]
        return response

    async def lease(self) -> LeaseAnswer:
        request = LeaseRequest(request_id=secrets.token_hex(16), capability=self.capability)
        response = await self.send("POST", "/v1/assignments/lease", request)
        assert response.status_code == 200, response.text
        return LeaseAnswer.model_validate_json(response.content)

    async def offer(self) -> Offer:
        answer = await self.lease()
        assert answer.offer is not None, answer.reason
        return answer.offer

    async def beat(self) -> httpx.Response:
        beat = WorkerHeartbeat(capability=self.capability, maddrs=())
        return await self.send("POST", "/v1/workers/heartbeat", beat)

    async def train(self, offer: Offer, step: int = 1) -> httpx.Response:
        beat = AssignmentHeartbeat(
            fencing=offer.fencing, step=step, loss=3.0, tokens_per_second=64.0, checkpoint=None
        )
        return await self.send("POST", f"/v1/assignments/{offer.assignment}/heartbeat", beat)


@pytest.fixture
def operator(api) -> Person:
    return Person(api, api.settings.admin_token)


@pytest.fixture
def worker(api, make, tmp_path):
    async def register(name: str, **capability: Any) -> Worker:
        identity = Identity.create(tmp_path / name / "worker.key")
        made = Worker(api, identity, make.capability(**capability))
        assert (await made.register()).status_code == 200
        return made

    return register


def add_work(api, make, count: int = 1, **changes: Any) -> list[str]:
    with api.ledger.begin() as connection:
        return [
            queries.add_assignment(
                connection,
                spec := make.spec(rng_seed=number, **changes),
                shard=make.shard(spec.domain, "train").blob,
                schemes=("MHo-IHo",),
                now=api.clock(),
            )
            for number in range(count)
        ]


def refusal(response: httpx.Response, code: ErrorCode) -> ErrorBody:
    body = ErrorBody.model_validate_json(response.content)
    assert body.code is code, body
    assert response.status_code == HTTP_STATUS[code]
    return body


def kinds(api) -> list[str]:
    with api.ledger.read() as connection:
        return [entry.kind for entry in queries.read_entries(connection)]


def state_of(api, assignment: str) -> str:
    with api.ledger.read() as connection:
        return queries.get_assignment(connection, assignment).state.value


def holds(api) -> bool:
    with api.ledger.read() as connection:
        return queries.verify_ledger(connection).holds


async def why(person: Person, worker: str, **query: object) -> WhyView:
    path = str(httpx.URL(f"/v1/workers/{worker}/why", params=query))
    response = await person.send("GET", path)
    assert response.status_code == 200, response.text
    return WhyView.model_validate_json(response.content)


ROUTES = [
    ("POST", f"workers/{NOBODY}/ban"),
    ("POST", f"assignments/a{'0' * 16}/retry"),
    ("POST", "pause"),
    ("GET", "entries"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_only_the_admin_token_opens_the_operators_routes(api, worker, method, path):
    anna = await worker("anna")
    for token in (None, "wrong", anna.token, "ünïcode", f"{api.settings.admin_token}x"):
        response = await api.http.request(
            method,
            f"/v1/admin/{path}",
            content='{"reason": ""}' if method == "POST" else None,
            headers={"Authorization": f"Bearer {token}".encode()} if token else {},
        )
        assert "admin.token" in refusal(response, ErrorCode.UNKNOWN_TOKEN).message
    assert kinds(api)[-1] == "register"


@pytest.mark.parametrize(
    "api_settings", [{"admin_token": None}, {"admin_token": ""}], indirect=True
)
async def test_a_run_without_an_admin_token_lets_nobody_operate(api):
    for token in ("", "None", "anything"):
        response = await Person(api, token).order("pause")
        refusal(response, ErrorCode.UNKNOWN_TOKEN)


async def test_what_is_unknown_is_named(api, operator):
    body = refusal(await operator.order(f"workers/{NOBODY}/ban"), ErrorCode.UNKNOWN_WORKER)
    assert NOBODY in body.message
    unknown = f"a{'0' * 16}"
    body = refusal(
        await operator.order(f"assignments/{unknown}/retry"), ErrorCode.UNKNOWN_ASSIGNMENT
    )
    assert unknown in body.message
    for path in ("workers/anna/ban", f"workers/{NOBODY}/promote", "explode"):
        refusal(await operator.order(path), ErrorCode.BAD_REQUEST)
    response = await operator.send("GET", f"/v1/workers/{NOBODY}/why")
    refusal(response, ErrorCode.UNKNOWN_WORKER)


async def test_a_ban_ends_the_lease_voids_the_token_and_forbids_to_register(
    api, make, operator, worker
):
    (assignment,) = add_work(api, make)
    anna, bert = await worker("anna"), await worker("bert")
    offer = await anna.offer()
    assert (await anna.train(offer)).status_code == 200
    banned = WorkerMarks.model_validate_json(
        (await operator.order(f"workers/{anna.id}/ban")).content
    )
    assert (banned.worker, banned.banned, banned.draining) == (anna.id, True, False)
    assert state_of(api, assignment) == "open"
    refusal(await anna.train(offer, 2), ErrorCode.BANNED)
    refusal(await anna.beat(), ErrorCode.BANNED)
    refusal(await anna.register(), ErrorCode.BANNED)
    api.pass_time(1.0)
    assert (await bert.offer()).assignment == assignment
    assert holds(api)


async def test_an_unbanned_worker_registers_again_and_gets_work(api, make, operator, worker):
    (assignment,) = add_work(api, make)
    anna = await worker("anna")
    for verb in ("ban", "unban"):
        assert (await operator.order(f"workers/{anna.id}/{verb}")).status_code == 200
    assert (await anna.register()).status_code == 200
    assert (await anna.offer()).assignment == assignment


async def test_a_ban_costs_no_other_worker_its_lease_after_the_api_was_silent(
    api, make, operator, worker
):
    add_work(api, make, 2)
    anna, bert = await worker("anna"), await worker("bert")
    await anna.offer()
    offer = await bert.offer()
    api.clock.advance(600.0)
    assert (await operator.order(f"workers/{anna.id}/ban")).status_code == 200
    assert (await bert.train(offer)).status_code == 200


async def test_a_draining_worker_finishes_what_it_has_and_gets_no_more(api, make, operator, worker):
    add_work(api, make, 2)
    anna, bert = await worker("anna"), await worker("bert")
    offer = await anna.offer()
    for drained in (anna, bert):
        response = await operator.order(f"workers/{drained.id}/drain")
        assert WorkerMarks.model_validate_json(response.content).draining
    assert (await anna.train(offer)).status_code == 200
    answer = await bert.lease()
    assert answer.offer is None
    assert "no more work" in answer.reason
    assert (await operator.order(f"workers/{bert.id}/undrain")).status_code == 200
    assert (await bert.lease()).offer is not None


async def test_a_drain_does_not_change_when_work_in_progress_is_expected_to_end(
    api, make, operator, worker
):
    add_work(api, make, num_steps=1_000_000_000)
    anna = await worker("anna", flops_per_second=1e12)
    offer = await anna.offer()
    ends = []
    for step, order in ((1, "undrain"), (2, "drain"), (3, "drain")):
        assert (await operator.order(f"workers/{anna.id}/{order}")).status_code == 200
        api.clock.advance(1.0)
        assert (await anna.train(offer, step)).status_code == 200
        api.pass_time(10.0)
        ends.append((await api.http.get("/v1/status")).json()["eta_seconds"])
    assert ends[1:] == pytest.approx([ends[0], ends[0]], rel=0.01)


async def test_a_paused_run_makes_no_new_offers_and_running_leases_go_on(
    api, make, operator, worker
):
    add_work(api, make, 2)
    anna, bert = await worker("anna"), await worker("bert")
    offer = await anna.offer()
    response = await operator.order("pause")
    assert RunPause.model_validate_json(response.content) == RunPause(run="test", paused=True)
    assert "paused" in (await bert.lease()).reason
    assert (await anna.train(offer)).status_code == 200
    assert (await api.http.get("/v1/status")).json()["paused"]
    assert (await operator.order("resume")).status_code == 200
    assert (await bert.lease()).offer is not None


async def test_repeating_an_order_changes_nothing(api, make, operator, worker):
    assignment, other = add_work(api, make, 2)
    anna = await worker("anna")
    orders = [
        *(f"workers/{anna.id}/{verb}" for verb in ("ban", "unban", "drain", "undrain")),
        *(f"assignments/{assignment}/{verb}" for verb in ("cancel", "retry", "fail", "retry")),
        f"assignments/{other}/fail",
        "pause",
        "resume",
    ]
    for order in orders:
        first = await operator.order(order)
        before = kinds(api)
        again = await operator.order(order)
        assert (first.status_code, first.content) == (200, again.content), again.text
        assert kinds(api) == before, order
    assert holds(api)


async def test_every_order_is_an_entry_with_its_reason(api, make, operator, worker):
    (assignment,) = add_work(api, make)
    anna = await worker("anna")
    before = len(kinds(api))
    for order in (f"workers/{anna.id}/drain", f"assignments/{assignment}/cancel", "pause"):
        assert (await operator.order(order, reason=f"for {order[:8]}")).status_code == 200
    response = await operator.send("GET", f"/v1/admin/entries?after={before}&limit=2")
    page = [EntryView.model_validate(entry) for entry in response.json()]
    assert [(entry.kind, entry.facts["reason"]) for entry in page] == [
        ("drain", "for workers/"),
        ("cancel", "for assignme"),
    ]
    assert page[0].rows[0].values == {"worker": anna.id, "draining": 1}
    response = await operator.send("GET", f"/v1/admin/entries?after={page[-1].number}")
    (last,) = response.json()
    assert (last["kind"], last["previous"]) == ("pause", page[-1].digest)


async def test_a_cancelled_assignment_takes_the_lease_and_can_be_opened_again(
    api, make, operator, worker
):
    (assignment,) = add_work(api, make)
    anna = await worker("anna")
    offer = await anna.offer()
    response = await operator.order(f"assignments/{assignment}/cancel")
    standing = AssignmentStanding.model_validate_json(response.content)
    assert (standing.state, standing.also) == ("cancelled", ())
    refusal(await anna.train(offer), ErrorCode.LEASE_LOST)
    assert (await anna.lease()).offer is None
    assert (await operator.order(f"assignments/{assignment}/retry")).status_code == 200
    assert (await anna.offer()).assignment == assignment


async def test_retrying_what_somebody_does_is_refused(api, make, operator, worker):
    (assignment,) = add_work(api, make)
    anna = await worker("anna")
    await anna.offer()
    body = refusal(await operator.order(f"assignments/{assignment}/retry"), ErrorCode.WRONG_STATE)
    assert "offered" in body.message


async def test_ending_an_original_ends_its_backup_and_not_the_other_way_round(
    api, make, operator, worker
):
    originals = add_work(api, make, 2)
    anna, bert = await worker("anna"), await worker("bert")
    await anna.train(await anna.offer())
    await bert.train(await bert.offer())
    with api.ledger.begin() as connection:
        backups = [
            queries.add_backup(
                connection, queries.get_assignment(connection, original), now=api.clock()
            )
            for original in originals
        ]
    response = await operator.order(f"assignments/{originals[0]}/cancel")
    standing = AssignmentStanding.model_validate_json(response.content)
    assert standing.also == (backups[0],)
    assert state_of(api, backups[0]) == "cancelled"
    response = await operator.order(f"assignments/{backups[1]}/cancel")
    assert AssignmentStanding.model_validate_json(response.content).also == ()
    assert state_of(api, originals[1]) == "running"
    body = refusal(await operator.order(f"assignments/{backups[1]}/retry"), ErrorCode.WRONG_STATE)
    assert originals[1] in body.message
    assert holds(api)


async def test_why_names_the_requirement_that_fails_and_by_how_much(api, make, worker):
    (assignment,) = add_work(api, make)
    anna = await worker("anna", free_memory_bytes=1000)
    account = await why(anna, anna.id)
    (considered,) = account.considered
    assert (considered.assignment, considered.fits) == (assignment, False)
    assert (considered.requirement, considered.held, considered.unit) == ("memory", 1000, "bytes")
    assert considered.needed is not None
    assert considered.needed > 1000
    assert "needs" in considered.words
    assert considered.words in account.answer
    assert account.blockers == ()
    assert account.next_after is None


async def test_why_says_what_would_be_given_and_who_is_expected_sooner(api, make, operator, worker):
    (assignment,) = add_work(api, make, num_steps=20_000)
    slow, fast = (
        await worker("slow", flops_per_second=1e8),
        await worker("fast", flops_per_second=1e12),
    )
    account = await why(operator, slow.id)
    assert [one.given for one in account.considered] == [True]
    offer = await fast.offer()
    await fast.send(
        "POST",
        f"/v1/assignments/{offer.assignment}/release",
        '{"fencing": 1, "reason": "stopped", "detail": "", "checkpoint": null}',
    )
    api.pass_time(2.0)
    await fast.beat()
    with api.ledger.begin() as connection:
        queries.set_asked(connection, fast.id, api.clock())
    api.tick()
    (considered,) = (await why(operator, slow.id)).considered
    assert (considered.assignment, considered.sooner) == (assignment, fast.id)
    assert considered.sooner_seconds is not None
    assert considered.finish_seconds is not None
    assert considered.sooner_seconds < considered.finish_seconds


@pytest.mark.parametrize("api_settings", [{"token_seconds": 60.0}], indirect=True)
async def test_why_names_everything_that_keeps_a_worker_from_all_work(api, make, operator, worker):
    (assignment,) = add_work(api, make)
    anna, bert = await worker("anna"), await worker("bert")
    await anna.offer()
    account = await why(operator, anna.id)
    assert account.holds == assignment
    assert account.blockers == (f"it holds {assignment} already",)
    await operator.order("pause")
    await operator.order(f"workers/{bert.id}/drain")
    await operator.order(f"workers/{bert.id}/ban")
    api.pass_time(90.0)
    account = await why(operator, bert.id)
    assert account.blockers == (
        "the operator paused the run",
        "the operator banned it",
        "the operator asked it to take no more work",
        "it has been silent for 90 s",
        "its token has expired: it must register again",
    )
    assert (account.state, account.age_seconds) == ("banned", 90.0)


async def test_asking_why_does_not_make_others_wait_for_a_worker_that_is_gone(
    api, make, operator, worker
):
    gone, anna = await worker("gone", flops_per_second=1e15), await worker("anna")
    await gone.lease()
    api.pass_time(60.0)
    add_work(api, make, num_steps=100_000)
    await anna.beat()
    account = await why(operator, gone.id)
    assert account.state == "offline"
    assert (await anna.lease()).offer is not None


async def test_an_account_is_paged_and_shows_the_rate_limit(api, make, operator, worker):
    names = sorted(add_work(api, make, 5))
    anna = await worker("anna")
    first = await why(anna, anna.id, limit=2)
    assert [one.assignment for one in first.considered] == names[:2]
    assert first.next_after == names[1]
    second = await why(anna, anna.id, limit=3, after=names[1])
    assert [one.assignment for one in second.considered] == names[2:]
    assert second.next_after is None
    assert second.rate.calls_left == first.rate.calls_left - 1
    assert (second.rate.calls_a_second, second.rate.retry_after_seconds) == (1.0, 0.0)


async def test_only_the_worker_itself_and_the_operator_may_ask_why(api, worker):
    anna, bert = await worker("anna"), await worker("bert")
    refusal(await bert.send("GET", f"/v1/workers/{anna.id}/why"), ErrorCode.FORBIDDEN)
    for token in (None, "wrong"):
        response = await Person(api, token).send("GET", f"/v1/workers/{anna.id}/why")
        refusal(response, ErrorCode.UNKNOWN_TOKEN)
