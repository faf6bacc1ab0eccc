"""Typed calls to the coordinator's REST interface. Every httpx error becomes one of ours."""

import re
import secrets
import time
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, RootModel, ValidationError

from protocol import PROTOCOL_VERSION
from protocol.admin import WhyView
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
    ReachabilityAnswer,
    ReachabilityRequest,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
    Release,
    RunInfo,
    Submission,
    WorkerHeartbeat,
)
from protocol.owndata import DomainOffer, OwnDataTerms, OwnDomainView, SelfReport
from protocol.previews import Preview
from protocol.versions import HEADER
from protocol.views import DomainView
from shared.identity import Identity
from shared.version import SOFTWARE_VERSION
from worker.answers import read_answer
from worker.errors import (
    CoordinatorBusy,
    CoordinatorUnreachable,
    NotACoordinator,
    Refused,
    WorkerError,
)
from worker.unreachable import explain_answer, explain_silence, explain_wrong_place

Answer = TypeVar("Answer", bound=BaseModel)

TIMEOUT = httpx.Timeout(10.0, read=30.0)

LATER = frozenset({ErrorCode.BUSY, ErrorCode.RATE_LIMITED})
"""Refusals that are about the moment, not about the request."""


class CoordinatorClient:
    """One worker's conversation with one coordinator. Keeps the bearer token between calls.

    Without an identity it asks what anybody may ask, and cannot register.
    """

    def __init__(self, url: str, identity: Identity | None = None) -> None:
        self.url = url.rstrip("/")
        self.identity = identity
        self.http = _http_client()
        self.round_trip_seconds: float | None = None
        """From a call to its answer, of the newest that was answered."""
        self.server_seconds: float | None = None
        """How much of that the coordinator itself took, if it said so."""
        self._token: str | None = None

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()

    @property
    def host(self) -> str:
        """The coordinator's host: a name or an IP address."""
        return urlsplit(self.url).hostname or ""

    @property
    def token(self) -> str | None:
        """The bearer token that calls carry now."""
        return self._token

    @property
    def headers(self) -> dict[str, str]:
        """Our version and the bearer token, also for calls that other modules make there."""
        version = {HEADER: str(PROTOCOL_VERSION)}
        return {**version, "Authorization": f"Bearer {self._token}"} if self._token else version

    async def run_info(self) -> RunInfo:
        """What the coordinator says of its run, before anybody trusts anybody."""
        try:
            return await self._call("GET", "/v1/run", None, RunInfo)
        except Refused as refusal:
            if refusal.code is not ErrorCode.NOT_FOUND:
                raise
            raise NotACoordinator(explain_wrong_place(self.url)) from refusal

    async def domains(self) -> tuple[DomainView, ...]:
        """The run's domains with their public shards; none before its text is prepared."""
        return (
            await self._call("GET", "/v1/domains", None, RootModel[tuple[DomainView, ...]])
        ).root

    async def own_data_terms(self) -> OwnDataTerms:
        """What the run does with text that stays on a worker's machine."""
        return await self._call("GET", "/v1/own-data", None, OwnDataTerms)

    async def offer_domain(self, offer: DomainOffer) -> OwnDomainView:
        """Has text of a domain, which stays here. Repeating it changes nothing."""
        return await self._call("POST", "/v1/own-data/domains", offer, OwnDomainView)

    async def report_domain(self, domain: str, report: SelfReport) -> OwnDomainView:
        """Says how well the seed and the expert predict the own dev shard."""
        path = f"/v1/own-data/domains/{domain}/report"
        return await self._call("POST", path, report, OwnDomainView)

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
        assert self.identity is not None, "only a worker with a key registers"
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

    async def reachability(self, request: ReachabilityRequest) -> ReachabilityAnswer:
        """Lets the coordinator dial us, which takes it some seconds."""
        return await self._call("POST", "/v1/workers/reachability", request, ReachabilityAnswer)

    async def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """Asks for work. Repeating the request repeats the answer."""
        return await self._call("POST", "/v1/assignments/lease", request, LeaseAnswer)

    async def preview(self, request: LeaseRequest) -> Preview:
        """What this request for work would get now; nothing is leased."""
        return await self._call("POST", "/v1/assignments/preview", request, Preview)

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

    async def why(self, *, limit: int) -> WhyView:
        """What the scheduler thinks of us, with at most `limit` open assignments."""
        assert self.identity is not None, "only a worker with a key is thought of"
        path = f"/v1/workers/{self.identity.peer_id}/why?limit={limit}"
        return await self._call("GET", path, None, WhyView)

    async def upload_url(self, digest: str) -> BlobUrl:
        """Where to upload a blob that the coordinator wants from us."""
        return await self._call("GET", f"/v1/blobs/{digest}/upload", None, BlobUrl)

    def _note_time(self, seconds: float, header: str) -> None:
        """Not every route tells its own time: what is known of both stays together."""
        own = server_seconds(header)
        if own is not None or self.server_seconds is None:
            self.round_trip_seconds, self.server_seconds = seconds, own

    async def _call(
        self, method: str, path: str, body: BaseModel | None, answer: type[Answer]
    ) -> Answer:
        content = None if body is None else body.model_dump_json().encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        sent = time.monotonic()
        try:
            response = await self.http.request(
                method, self.url + path, content=content, headers=headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise explain_silence(self.url, error) from error
        self._note_time(time.monotonic() - sent, response.headers.get("Server-Timing", ""))
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


def server_seconds(header: str) -> float | None:
    """Seconds in a Server-Timing header such as `app;dur=12.3` (milliseconds), if it has them."""
    match = re.fullmatch(r"app;dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)", header)
    return float(match.group(1)) / 1000 if match else None


def _http_client() -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False)
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise WorkerError(
            f"no connection can be made: {error}; mend or unset the environment variables of "
            "proxies (http_proxy, https_proxy, all_proxy, no_proxy) and SSL_CERT_FILE"
        ) from error


def _parse(response: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        return read_answer(response.content, kind)
    except ValidationError as error:
        raise explain_answer(response, kind.__name__) from error
