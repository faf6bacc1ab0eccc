"""Whatever is sent to the served api, it answers as its own OpenAPI document says."""

import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.load.ground import RUN, make_run
from benchmarks.load.server import HOST, ApiServer, free_port
from benchmarks.load.volunteers import CAPABILITY, Volunteer
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.messages import MAX_BODY_BYTES

NUM_WORKERS = 40
JSON = {"Content-Type": "application/json"}
ADMIN = "/v1/admin"
NOT_READY = "/readyz"
"""Without the other roles the api is not ready, and says so with the 503 that it declares."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@dataclass(frozen=True)
class Served:
    """The api as a process of its own, and workers of which half hold a lease."""

    http: httpx.Client
    session: requests.Session
    admin: str
    tokens: Iterator[str]
    workers: Iterator[str]
    held: Iterator[tuple[str, str]]
    """Assignments, each with the token of the worker that holds its first lease."""

    def post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        """A POST by the next worker."""
        bearer = {"Authorization": f"Bearer {next(self.tokens)}"}
        return self.http.post(path, content=content, headers={**bearer, **JSON, **headers})


def body_of(request: bytes) -> bytes:
    return request.split(b"\r\n\r\n", 1)[1]


def register(http: httpx.Client, coordinator: str) -> Volunteer:
    worker = Volunteer.create()
    nonce = http.post("/v1/workers/challenge").json()["nonce"]
    request = worker.register(coordinator=coordinator, run=RUN, nonce=nonce)
    response = http.post("/v1/workers/register", content=body_of(request), headers=JSON)
    worker.joined(response.json()["token"])
    return worker


def lease(http: httpx.Client, worker: Volunteer) -> str:
    headers = {"Authorization": f"Bearer {worker.token}", **JSON}
    response = http.post("/v1/assignments/lease", content=body_of(worker.lease()), headers=headers)
    return response.json()["offer"]["assignment"]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    ground = make_run(
        tmp_path_factory.mktemp("run"),
        url=None,
        port=free_port(),
        heartbeat_seconds=60.0,
        specs=2 * NUM_WORKERS,
    )
    base_url = f"http://{HOST}:{ground.port}"
    with (
        ApiServer(ground) as server,
        httpx.Client(base_url=base_url) as http,
        requests.Session() as session,
    ):
        workers = [register(http, ground.coordinator) for _ in range(NUM_WORKERS)]
        held = [(lease(http, worker), worker.token) for worker in workers[: NUM_WORKERS // 2]]
        yield Served(
            http=http,
            session=session,
            admin=ground.folders.admin_token.read_text().strip(),
            tokens=itertools.cycle(worker.token for worker in workers),
            workers=itertools.cycle(worker.identity.peer_id for worker in workers),
            held=itertools.cycle(held),
        )
        assert "Traceback" not in logged(server.log.parent)


def logged(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.iterdir())


@pytest.fixture(scope="module")
def operations(served):
    document = served.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 15
    return found


def send(served: Served, case, token: str | None) -> None:
    """Send one made-up request and check its answer.

    About half of those on assignments and workers are about real ones: they get further.
    """
    checks = list(CHECKS)
    if token is not None:
        case.headers.pop("authorization", None)
        if case.id < "V" and {"assignment", "worker"} & set(case.path_parameters):
            token = make_real(served, case, token)
            checks.remove(negative_data_rejection)
    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    response = case.call(str(served.http.base_url), session=served.session, headers=headers)
    if response.status_code == 503 and case.operation.path == NOT_READY:
        checks.remove(not_a_server_error)
    case.validate_response(response, checks)


def make_real(served: Served, case, token: str) -> str:
    """Put real names into a request. The token to send with it: that of the lease's holder."""
    if "worker" in case.path_parameters:
        case.path_parameters["worker"] = next(served.workers)
    if "assignment" in case.path_parameters:
        case.path_parameters["assignment"], holder = next(served.held)
        token = token if case.operation.path.startswith(ADMIN) else holder
    if isinstance(case.body, dict) and case.body.get("fencing"):
        case.body["fencing"] = 1
    return token


def takes_input(operation) -> bool:
    """Whether something can be wrong with a request, its token apart: that is any text."""
    headers = [one for one in operation.headers if one.name.lower() != "authorization"]
    parts = (operation.path_parameters, operation.query, headers, operation.body)
    return any(len(part) for part in parts)


def beat_with(**changes: object) -> bytes:
    """A worker's heartbeat with other fields in its capability."""
    beat = {"capability": {**CAPABILITY.model_dump(), **changes}, "maddrs": []}
    return json.dumps(beat).encode()


BEAT = beat_with()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[" * 30_000, id="nested deeper than a parser can go"),
        pytest.param(b"[" * 30_000 + b"]" * 30_000, id="nested deeply"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="objects nested deeply"),
        pytest.param(BEAT.replace(b"load", b"\xff\xfe"), id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf" + BEAT + b"\x00", id="with a byte order mark and a NUL"),
        pytest.param(BEAT.replace(b"load", b"\\ud800"), id="half a surrogate pair"),
        pytest.param(beat_with(flops_per_second=float("nan")), id="NaN"),
        pytest.param(beat_with(flops_per_second=float("inf")), id="infinity"),
        pytest.param(BEAT.replace(b": 8,", b": 1e999,"), id="a float beyond floats"),
        pytest.param(BEAT.replace(b": 8,", b": " + b"9" * 5000 + b","), id="5000 digits"),
        pytest.param(beat_with(num_threads=2**63), id="an integer beyond the database's"),
        pytest.param(beat_with(num_threads="8"), id="a number as text"),
        pytest.param(beat_with(num_threads=True), id="a truth value as number"),
        pytest.param(beat_with(num_threads=None), id="null for a number"),
        pytest.param(beat_with(bfloat16=1), id="a number as truth value"),
        pytest.param(beat_with(device={"$ne": ""}), id="an object as text"),
        pytest.param(beat_with(extra=1), id="an unknown field"),
        pytest.param(BEAT + BEAT, id="two documents"),
        pytest.param(BEAT.replace(b"8,", b"8, " + b" " * MAX_BODY_BYTES), id="too large"),
    ],
)
def test_a_body_that_is_no_heartbeat_is_refused_with_a_reason(served, content):
    response = served.post("/v1/workers/heartbeat", content)
    body = ErrorBody.model_validate_json(response.content)
    large = len(content) > MAX_BODY_BYTES
    assert body.code is (ErrorCode.BODY_TOO_LARGE if large else ErrorCode.BAD_REQUEST)
    assert response.status_code == HTTP_STATUS[body.code]
    assert body.message


def test_a_heartbeat_is_taken_as_it_stands_in_the_messages_above(served):
    assert served.post("/v1/workers/heartbeat", BEAT).status_code == 200


def test_text_with_characters_that_databases_dislike_is_kept_or_refused(served):
    for name in ("\x00", "a\x00b", "\u202e", "\U0010ffff", "'; DROP TABLE entries; --"):
        response = served.post("/v1/workers/heartbeat", beat_with(device_name=name))
        assert response.status_code in (200, 422), response.text


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "\u00e9", ""])
def test_a_body_of_another_type_is_refused(served, content_type):
    headers = {"Content-Type": content_type.encode("latin-1")}
    response = served.post("/v1/workers/heartbeat", BEAT, **headers)
    assert ErrorBody.model_validate_json(response.content).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("length", ["-1", "ten", str(2**70)])
def test_a_content_length_that_lies_gets_no_server_error(served, length):
    with socket.create_connection((HOST, served.http.base_url.port), timeout=10) as connection:
        head = f"POST /v1/workers/challenge HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * (MAX_BODY_BYTES + 1))
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(100).startswith(b"HTTP/1.1 5")
    assert served.http.get("/healthz").status_code == 200


# The operator comes last: what it may be made to do, such as to ban everybody, stays.
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    ("who", "examples"),
    [("nobody", 10), ("worker", 30), ("operator", 30)],
    ids=["nobody", "worker", "operator"],
)
def test_no_request_gets_an_undeclared_answer(served, operations, who, examples, mode):
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not takes_input(operation):
            continue
        if who == "operator" and not operation.path.startswith(ADMIN):
            continue
        strategy = operation.as_strategy(generation_mode=mode)

        @seed(7)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def answers(case):
            token = {"nobody": None, "operator": served.admin}.get(who, next(served.tokens))
            send(served, case, token)

        answers()
