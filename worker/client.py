"""Typed calls to the coordinator's REST interface. Every httpx error becomes one of ours."""

import secrets
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from protocol import PROTOCOL_VERSION
from protocol.capability import Capability
from protocol.digests import digest_value
from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import (
    REGISTER_PURPOSE,
    Acknowledge,
    AssignmentHeartbeat,
    AssignmentHeartbeatAnswer,
    BlobUrl,
    Challenge,
    HeartbeatAnswer,
    LeaseAnswer,
    LeaseRequest,
    LeaseState,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
    Release,
    RunInfo,
    Submission,
    WorkerHeartbeat,
)
from shared.identity import Identity
from shared.version import SOFTWARE_VERSION
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused

Answer = TypeVar("Answer", bound=BaseModel)

TIMEOUT = httpx.Timeout(10.0, read=30.0)

LATER = frozenset({ErrorCode.BUSY, ErrorCode.RATE_LIMITED})
"""Refusals that are about the moment, not about the request."""


class CoordinatorClient:
    """One worker's conversation with one coordinator. Keeps the bearer token between calls."""

    def __init__(self, url: str, identity: Identity) -> None:
        self.url = url.rstrip("/")
        self.identity = identity
        self.http = httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False)
        self._token: str | None = None

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()

    @property
    def token(self) -> str | None:
        """The bearer token that calls carry now."""
        return self._token

    @property
    def headers(self) -> dict[str, str]:
        """The bearer token, for calls that other modules make to the same coordinator."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def run_info(self) -> RunInfo:
        """What the coordinator says of its run, before anybody trusts anybody."""
        return await self._call("GET", "/v1/run", None, RunInfo)

    async def register(
        self,
        info: RunInfo,
        capability: Capability,
        *,
        name: str,
        invite: str | None,
        maddrs: tuple[str, ...],
    ) -> RegisterAnswer:
        """Proves that we hold our key and remembers the token that this earns."""
        challenge = await self._call("POST", "/v1/workers/challenge", None, Challenge)
        statement = RegistrationStatement(
            purpose=REGISTER_PURPOSE,
            coordinator=info.coordinator,
            run=info.run,
            worker=self.identity.peer_id,
            nonce=challenge.nonce,
            capability=digest_value(capability),
            protocol_version=PROTOCOL_VERSION,
        )
        request = RegisterRequest(
            worker=self.identity.peer_id,
            nonce=challenge.nonce,
            capability=capability,
            protocol_version=PROTOCOL_VERSION,
            software_version=SOFTWARE_VERSION,
            maddrs=maddrs,
            signature=self.identity.sign(statement.signed_bytes()),
            name=name,
            invite=invite,
        )
        answer = await self._call("POST", "/v1/workers/register", request, RegisterAnswer)
        self._token = answer.token
        return answer

    async def heartbeat(self, beat: WorkerHeartbeat) -> HeartbeatAnswer:
        """Alive, whether or not there is work."""
        return await self._call("POST", "/v1/workers/heartbeat", beat, HeartbeatAnswer)

    async def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """Asks for work. Repeating the request repeats the answer."""
        return await self._call("POST", "/v1/assignments/lease", request, LeaseAnswer)

    async def acknowledge(self, assignment: str, fencing: int) -> LeaseState:
        """Takes an offer."""
        path = f"/v1/assignments/{assignment}/acknowledge"
        return await self._call("POST", path, Acknowledge(fencing=fencing), LeaseState)

    async def assignment_heartbeat(
        self, assignment: str, beat: AssignmentHeartbeat
    ) -> AssignmentHeartbeatAnswer:
        """Renews a lease with the trainer's progress."""
        path = f"/v1/assignments/{assignment}/heartbeat"
        return await self._call("POST", path, beat, AssignmentHeartbeatAnswer)

    async def submit(self, assignment: str, submission: Submission) -> LeaseState:
        """Hands in a finished expert."""
        return await self._call(
            "POST", f"/v1/assignments/{assignment}/submit", submission, LeaseState
        )

    async def release(self, assignment: str, release: Release) -> LeaseState:
        """Gives a lease back."""
        return await self._call(
            "POST", f"/v1/assignments/{assignment}/release", release, LeaseState
        )

    async def upload_url(self, digest: str) -> BlobUrl:
        """Where to upload a blob that the coordinator wants from us."""
        return await self._call("GET", f"/v1/blobs/{digest}/upload", None, BlobUrl)

    async def _call(
        self, method: str, path: str, body: BaseModel | None, answer: type[Answer]
    ) -> Answer:
        content = None if body is None else body.model_dump_json().encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        try:
            response = await self.http.request(
                method, self.url + path, content=content, headers=headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CoordinatorUnreachable(
                f"{self.url}: {type(error).__name__} {error}".rstrip()
            ) from error
        if response.is_success:
            return _parse(response, answer)
        refusal = Refused(_parse(response, ErrorBody))
        later = refusal.body.retry_after_seconds
        if refusal.code in LATER:
            raise CoordinatorBusy(str(refusal), retry_after_seconds=later) from refusal
        if response.is_server_error:
            words = f"{self.url}: {refusal}"
            raise CoordinatorUnreachable(words, retry_after_seconds=later) from refusal
        raise refusal


def new_request_id() -> str:
    """A fresh id for a request that may be repeated."""
    return secrets.token_hex(16)


def _parse(response: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise CoordinatorUnreachable(
            f"{response.request.url}: HTTP {response.status_code} with a body that is no "
            f"{kind.__name__}; is this an HDEE coordinator of protocol {PROTOCOL_VERSION}?"
        ) from error
