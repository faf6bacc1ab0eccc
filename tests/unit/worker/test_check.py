"""`hdee-worker check`: every row says what was found, and the whole can be believed."""

import asyncio
import dataclasses
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import PROTOCOL_VERSION
from protocol.messages import RegisterAnswer, RunInfo
from protocol.versions import KEPT
from shared.identity import Identity, sign_certificate
from worker import checks
from worker.check import REST, WAYS, Row, Scene, as_json, as_text, exit_code, settle
from worker.checks import CHECKS, check_all
from worker.client import CoordinatorClient
from worker.folder import WorkerFolder
from worker.settings import JoinSettings

URL = "http://127.0.0.1:1"
"""Where nobody listens."""


def row(name: str, state: str = "ok") -> Row:
    return Row(name=name, state=state, found="found")


def info(**changes: object) -> RunInfo:
    values = {
        "run": "test",
        "coordinator": "12D3KooWS3qNoTxRGuYoDCFBeuu1UpGN8vUk8kBCj3xrDG8VMLpf",
        "protocol_version": PROTOCOL_VERSION,
        "software_version": "9.9",
        "bootstrap": (),
        "server_time": 0.0,
        "heartbeat_seconds": 10.0,
    }
    return RunInfo.model_validate({**values, **changes})


@pytest.fixture
async def scene(tmp_path):
    made = Scene(
        settings=JoinSettings(url=URL, folder=tmp_path / "worker"), client=CoordinatorClient(URL)
    )
    yield made
    await made.close()


@pytest.fixture
def api_answer(tmp_path):
    coordinator = Identity.create(tmp_path / "coordinator.key")
    return RegisterAnswer(
        token="token",
        token_seconds=60.0,
        certificate=sign_certificate(
            coordinator, peer=info().coordinator, run="test", expires_at=2_000_000_000
        ),
        bootstrap=(),
        heartbeat_seconds=10.0,
    )


def test_a_machine_with_one_way_for_blobs_can_take_part():
    for broken in WAYS:
        rows = settle([row(way, "failure" if way == broken else "ok") for way in WAYS])
        assert {one.name: one.state for one in rows}[broken] == "warning"
        assert exit_code(rows) == 0


def test_a_machine_without_any_way_for_blobs_cannot():
    assert exit_code(settle([row(REST), *(row(way, "failure") for way in WAYS)])) == 1


def test_over_http_alone_a_broken_http_is_a_failure():
    assert exit_code(settle([row("http", "failure")])) == 1


def test_a_coordinator_that_is_not_there_has_its_own_exit_code():
    assert exit_code([row("folder", "failure"), row(REST, "failure")]) == 3


NAMES = st.sampled_from(["folder", *WAYS])
STATES = st.sampled_from(["ok", "warning", "failure"])


@given(st.lists(st.builds(row, NAMES, STATES), max_size=5))
def test_judging_together_hides_nothing_but_the_second_way(rows):
    settled = settle(rows)
    assert [one.name for one in settled] == [one.name for one in rows]
    for before, after in zip(rows, settled, strict=True):
        assert after.state == before.state or (before.name in WAYS and after.state == "warning")


def test_people_and_programs_read_the_same():
    rows = [row("folder"), Row(name="libp2p", state="warning", found="no way", fix="open it")]
    assert as_text(rows).splitlines() == [
        "ok       folder        found",
        "warning  libp2p        no way",
        "                       fix: open it",
    ]
    assert json.loads(as_json(rows)) == {
        "ok": True,
        "rows": [
            {"state": "ok", "found": "found", "fix": "", "name": "folder"},
            {"state": "warning", "found": "no way", "fix": "open it", "name": "libp2p"},
        ],
    }


async def test_where_nobody_answers_the_report_ends_there(tmp_path):
    rows = await check_all(JoinSettings(url=URL, folder=tmp_path / "worker"))
    assert [(one.name, one.state) for one in rows[-4:]] == [
        *(("locks", "ok"), ("port", "ok"), ("environment", "ok")),
        (REST, "failure"),
    ]
    assert exit_code(rows) == 3
    assert not (tmp_path / "worker").exists(), "nothing was there, and nothing is left"
    WorkerFolder(tmp_path / "worker").close()


async def test_what_is_no_coordinator_cannot_write_to_the_terminal(tmp_path):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"code": "busy", "message": "a\\n\\u001b[2J ok coordinator"}'
        head = b"HTTP/1.1 429 x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        writer.write(head + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rows = await check_all(JoinSettings(url=f"http://127.0.0.1:{port}", folder=tmp_path / "w"))
    server.close()
    await server.wait_closed()
    assert exit_code(rows) == 3
    assert rows[-1].found.isprintable()
    assert as_text(rows).isascii()


async def test_a_folder_that_a_worker_uses_is_left_alone(scene):
    running = WorkerFolder(scene.settings.folder)
    try:
        found = await checks.folder(scene)
        scene.info = info()
        skipped = await checks.registration(scene)
    finally:
        running.close()
    assert (found.state, scene.folder) == ("ok", None)
    assert (skipped.state, scene.registered) == ("warning", None)
    assert "a worker runs from this folder" in skipped.found


@pytest.mark.parametrize("problem", ["a file in its place", "a damaged key"])
async def test_a_folder_that_cannot_be_used_is_a_failure_with_a_fix(scene, problem):
    root = scene.settings.folder
    if problem == "a damaged key":
        root.mkdir()
        (root / "worker.key").write_bytes(b"no key")
        (root / "worker.key").chmod(0o600)
    else:
        root.write_text("")
    found = await checks.folder(scene)
    assert (found.state, scene.folder) == ("failure", None)
    assert found.fix
    scene.info = info()
    skipped = await checks.registration(scene)
    assert "not tested" in skipped.found
    assert "mend the folder" in skipped.fix


@pytest.mark.parametrize(
    ("limit", "state"), [("MIN_FREE_BYTES", "failure"), ("LOW_FREE_BYTES", "warning")]
)
async def test_a_full_disk_is_told(scene, monkeypatch, limit, state, tmp_path):
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 0)
    monkeypatch.setattr(checks, "LOW_FREE_BYTES", 2 * shutil.disk_usage(tmp_path).free)
    monkeypatch.setattr(checks, limit, 2 * shutil.disk_usage(tmp_path).free)
    found = await checks.folder(scene)
    assert (found.state, bool(found.fix)) == (state, True)


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (0.0, "ok", "agrees"),
        (0.9, "ok", "0.9 s ahead"),
        (-1.5, "warning", "1.5 s behind"),
        (3.1, "failure", "3.1 s ahead"),
    ],
)
async def test_clocks_may_differ_by_a_second(scene, ahead, state, words):
    scene.ahead_seconds = ahead
    found = await checks.clock(scene)
    assert found.state == state
    assert words in found.found
    assert ("NTP" in found.fix) == (state != "ok")


async def test_over_http_alone_a_clock_that_is_off_is_a_warning(scene):
    scene.settings = dataclasses.replace(scene.settings, http_only=True)
    scene.ahead_seconds = 60.0
    assert (await checks.clock(scene)).state == "warning"


async def test_another_protocol_is_a_failure_that_names_the_software_to_install(scene):
    scene.info = info(protocol_version=PROTOCOL_VERSION + KEPT + 1)
    found = await checks.protocol_version(scene)
    assert found.state == "failure"
    assert "install hdee 9.9" in found.fix
    names = [check.name for check in CHECKS if check.applies(scene)]
    assert "registration" not in names


async def test_a_coordinator_that_names_no_peer_leaves_http(scene, api_answer):
    scene.info, scene.registered = info(), api_answer
    scene.folder = WorkerFolder(scene.settings.folder)
    found = await checks.libp2p(scene)
    assert (found.state, scene.peer) == ("failure", None)
    assert "names no peer" in found.found


def test_over_http_alone_nothing_of_libp2p_is_tested(tmp_path, api_answer):
    settings = JoinSettings(url=URL, folder=tmp_path, http_only=True)
    scene = Scene(settings=settings, client=None, registered=api_answer, info=info())
    names = [check.name for check in CHECKS if check.applies(scene)]
    assert names[-6:] == ["environment", REST, "protocol", "clock", "registration", "http"]
    assert "port" not in names
