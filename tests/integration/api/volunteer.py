"""A volunteer that says every request itself, and the other roles' parts, for tests of the api."""

import secrets
from typing import Any

import httpx

from coordinator.ledger import queries
from coordinator.scoring.verification import Accepted
from protocol import PROTOCOL_VERSION
from protocol.digests import digest_value
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import (
    Acknowledge,
    AssignmentHeartbeat,
    LeaseAnswer,
    LeaseRequest,
    Offer,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
    Release,
    Submission,
)
from shared.identity import Identity


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
