"""The client over httpx's own seam: whatever comes back, an answer or one of our errors."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from protocol import PROTOCOL_VERSION
from protocol.digests import digest_value
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import LeaseRequest, RegisterRequest, RegistrationStatement, RunInfo
from protocol.versions import HEADER
from shared.identity import Identity, verify
from worker.client import CoordinatorClient, new_request_id, server_seconds
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, NotACoordinator, Refused

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "worker.key")


def info_of(identity: Identity) -> RunInfo:
    return RunInfo(
        run="tiny",
        coordinator=identity.peer_id,
        protocol_version=PROTOCOL_VERSION,
        software_version="0",
        bootstrap=(),
        server_time=1.0,
        heartbeat_seconds=1.0,
    )


def client_of(identity: Identity, handler: Handler, url: str = "http://host/") -> CoordinatorClient:
    client = CoordinatorClient(url, identity)
    client.http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return client


LATER = (ErrorCode.BUSY, ErrorCode.RATE_LIMITED)


@pytest.mark.parametrize(
    "code", [code for code in ErrorCode if HTTP_STATUS[code] < 500 and code not in LATER]
)
async def test_every_refusal_keeps_its_code_and_its_words(
    identity: Identity, code: ErrorCode
) -> None:
    body = ErrorBody(code=code, message="because", retry_after_seconds=3.0)
    client = client_of(
        identity,
        lambda _: httpx.Response(HTTP_STATUS[code], content=body.model_dump_json()),
    )
    with pytest.raises(Refused, match="because") as refused:
        await client.own_data_terms()
    assert (refused.value.code, refused.value.body) == (code, body)
    assert refused.value.exit_code == 4


async def test_another_part_of_a_coordinator_is_told_as_the_wrong_address(
    identity: Identity,
) -> None:
    body = ErrorBody(code=ErrorCode.NOT_FOUND, message="no such route")
    client = client_of(identity, lambda _: httpx.Response(404, content=body.model_dump_json()))
    with pytest.raises(NotACoordinator, match="is a path too much, or is it the port for blobs"):
        await client.run_info()


@pytest.mark.parametrize("code", LATER)
async def test_a_coordinator_without_time_says_when_to_come_again_and_refuses_nothing(
    identity: Identity, code: ErrorCode
) -> None:
    body = ErrorBody(code=code, message="because", retry_after_seconds=3.0)
    client = client_of(identity, lambda _: httpx.Response(429, content=body.model_dump_json()))
    with pytest.raises(CoordinatorBusy, match="because") as busy:
        await client.run_info()
    assert busy.value.retry_after_seconds == 3.0


@pytest.mark.parametrize("code", [code for code in ErrorCode if HTTP_STATUS[code] >= 500])
async def test_a_coordinator_in_trouble_is_asked_again_not_obeyed(
    identity: Identity, code: ErrorCode
) -> None:
    body = ErrorBody(code=code, message="because", retry_after_seconds=2.0)
    client = client_of(
        identity,
        lambda _: httpx.Response(HTTP_STATUS[code], content=body.model_dump_json()),
    )
    with pytest.raises(CoordinatorUnreachable, match="because") as unreachable:
        await client.run_info()
    assert not isinstance(unreachable.value, CoordinatorBusy)
    assert unreachable.value.retry_after_seconds == 2.0


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("nobody listens"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("no HTTP"),
        httpx.TooManyRedirects("round and round"),
        httpx.DecodingError("no gzip"),
        httpx.InvalidURL("no URL"),
        httpx.UnsupportedProtocol("gopher"),
    ],
)
async def test_every_error_of_the_transport_is_one_of_ours(
    identity: Identity, error: Exception
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(CoordinatorUnreachable, match=type(error).__name__) as unreachable:
        await client_of(identity, fail).run_info()
    assert "http://host" in str(unreachable.value)
    assert unreachable.value.exit_code == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<p>welcome</p>"),
        httpx.Response(200, json={"run": "tiny"}),
        httpx.Response(200, json=[]),
        httpx.Response(204),
        httpx.Response(404, html="<p>not found</p>"),
        httpx.Response(429, text="slow down"),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(500, json={"code": "no such code", "message": ""}),
    ],
    ids=lambda answer: f"{answer.status_code}-{answer.content[:8]!r}",
)
async def test_an_answer_that_is_none_of_ours_says_what_was_expected(
    identity: Identity, answer: httpx.Response
) -> None:
    with pytest.raises(CoordinatorUnreachable, match="is this an HDEE coordinator of protocol 2"):
        await client_of(identity, lambda _: answer).run_info()


async def test_an_address_that_is_no_url_is_unreachable(identity: Identity) -> None:
    client = CoordinatorClient("http://[::1", identity)
    with pytest.raises(CoordinatorUnreachable, match=r"\[::1"):
        await client.run_info()
    await client.close()


async def test_a_registration_signs_the_nonce_and_its_token_goes_with_later_calls(
    identity: Identity, make
) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("challenge"):
            return httpx.Response(200, json={"nonce": "ab" * 32, "expires_in": 60.0})
        body = ErrorBody(code=ErrorCode.BANNED, message="no")
        if request.url.path.endswith("register"):
            return httpx.Response(200, json=ANSWER)
        return httpx.Response(403, content=body.model_dump_json())

    certificate = {"peer": identity.peer_id, "run": "tiny", "expires_at": 9}
    ANSWER = {
        "token": "secret",
        "token_seconds": 60.0,
        "certificate": {"certificate": certificate, "signature": "0" * 128},
        "bootstrap": [],
        "heartbeat_seconds": 1.0,
    }
    client = client_of(identity, answer)
    assert client.headers == {HEADER: str(PROTOCOL_VERSION)}
    await client.register(
        info_of(identity), make.capability(), name="anna", invite=None, maddrs=("/ip4/1.2.3.4",)
    )
    assert client.token == "secret"
    sent = RegisterRequest.model_validate_json(seen[1].read())
    assert sent.maddrs == ("/ip4/1.2.3.4",)
    statement = RegistrationStatement(
        purpose="hdee-register-v1",
        coordinator=identity.peer_id,
        run="tiny",
        worker=identity.peer_id,
        nonce="ab" * 32,
        capability=digest_value(make.capability()),
        protocol_version=PROTOCOL_VERSION,
    )
    assert verify(identity.peer_id, sent.signature, statement.signed_bytes())
    assert "authorization" not in seen[1].headers
    with pytest.raises(Refused):
        await client.lease(LeaseRequest(request_id=new_request_id(), capability=make.capability()))
    assert seen[2].headers["authorization"] == "Bearer secret"


def test_request_ids_differ() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100


async def test_the_time_of_an_answer_is_known_and_how_much_of_it_was_the_coordinators(
    identity: Identity,
) -> None:
    headers = {"Server-Timing": "app;dur=12.5"}
    body = info_of(identity).model_dump_json()
    client = client_of(identity, lambda _: httpx.Response(200, content=body, headers=headers))
    assert (client.round_trip_seconds, client.server_seconds) == (None, None)
    await client.run_info()
    assert client.round_trip_seconds is not None
    assert client.server_seconds == 0.0125
    before = client.round_trip_seconds
    headers.clear()
    await client.run_info()
    assert (client.round_trip_seconds, client.server_seconds) == (before, 0.0125)


@pytest.mark.parametrize("header", ["", "app", "app;dur=", "app;dur=-1", "app;dur=1e9", "db;dur=1"])
def test_a_time_that_makes_no_sense_is_none(header: str) -> None:
    assert server_seconds(header) is None
