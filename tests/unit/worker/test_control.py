"""The control socket: whatever comes over it, one bounded, typed answer goes back."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from worker.control import server
from worker.control.client import ControlRefused, NoWorker, Silent, ask, is_running
from worker.control.messages import (
    MAX_REQUEST_BYTES,
    Answer,
    BadMessage,
    FinishRequest,
    PauseRequest,
    Refusal,
    Request,
    ResumeRequest,
    StatusRequest,
    StopRequest,
    WhyRequest,
    encode,
    read_reply,
    read_request,
)
from worker.control.place import MAX_PATH_BYTES, NAME, NoPlace, bind, find, remove, runtime_folder
from worker.control.server import MAX_CONNECTIONS, serving
from worker.status import WorkerStatus

REQUESTS: list[Request] = [
    StatusRequest(),
    WhyRequest(),
    PauseRequest(),
    PauseRequest(seconds=7200.0),
    ResumeRequest(),
    FinishRequest(),
    StopRequest(at_once=True),
]


class Recorder:
    """Controls that remember what was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.sent: asyncio.Queue[Request] = asyncio.Queue()
        self.blocks = asyncio.Event()
        self.blocks.set()

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        await self.blocks.wait()
        if isinstance(request, FinishRequest):
            raise ValueError("no work")
        return Answer(status=WorkerStatus(losses=(1.5, 1.0)), pid=7, message="done")

    def after(self, request: Request) -> None:
        self.sent.put_nowait(request)


@pytest.fixture
async def controls(tmp_path):
    recorder = Recorder()
    async with serving(tmp_path, recorder, runtime=tmp_path / "run") as problem:
        assert problem == ""
        yield recorder


async def asked(root: Path, request: Request) -> Answer:
    return await asyncio.to_thread(ask, root, request, runtime=root / "run")


async def raw(root: Path, data: bytes) -> dict[str, object]:
    """The reply to these bytes as they are."""
    reader, writer = await asyncio.open_unix_connection(str(root / NAME))
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        return json.loads(await asyncio.wait_for(reader.readline(), 60))
    finally:
        writer.close()


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: one.verb)
def test_a_request_survives_the_wire(request_):
    assert read_request(encode(request_)) == request_


def test_an_answer_survives_the_wire():
    answer = Answer(status=WorkerStatus(state="training", losses=(2.0, 1.0)), pid=1)
    assert read_reply(encode(answer)) == answer
    refusal = Refusal(code="busy", message="later")
    assert read_reply(encode(refusal)) == refusal


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"no json\n", "bad_request", "Invalid JSON"),
        (b"[1]\n", "bad_request", "object"),
        (b'{"verb":"status"}\n', "version", "None"),
        (b'{"version":2,"verb":"status"}\n', "version", "start it again"),
        (b'{"version":1,"verb":"dance"}\n', "bad_request", "dance"),
        (b'{"version":1}\n', "bad_request", "verb"),
        (b'{"version":1,"verb":"status","extra":1}\n', "bad_request", "extra"),
        (b'{"version":1,"verb":"pause","seconds":"5"}\n', "bad_request", "seconds"),
        (b'{"version":1,"verb":"pause","seconds":-5.0}\n', "bad_request", "seconds"),
        (b'{"version":1,"verb":"pause","seconds":1e300}\n', "bad_request", "seconds"),
        (b'{"version":1,"verb":"stop","at_once":1}\n', "bad_request", "at_once"),
    ],
)
async def test_what_is_no_request_is_refused_and_does_nothing(
    controls, tmp_path, line, code, words
):
    with pytest.raises(BadMessage):
        read_request(line)
    reply = await raw(tmp_path, line)
    assert (reply["is_refusal"], reply["code"]) == (True, code)
    assert words in str(reply["message"])
    assert controls.asked == []


async def test_every_verb_reaches_the_agent_and_its_answer_comes_back(controls, tmp_path):
    for request in REQUESTS:
        if isinstance(request, FinishRequest):
            with pytest.raises(ControlRefused, match="ValueError: no work") as refused:
                await asked(tmp_path, request)
            assert refused.value.exit_code == 4
        else:
            answer = await asked(tmp_path, request)
            assert (answer.message, answer.pid) == ("done", 7)
            assert answer.status.losses == (1.5, 1.0)
    assert controls.asked == REQUESTS
    for request in REQUESTS:
        if not isinstance(request, FinishRequest):
            assert await asyncio.wait_for(controls.sent.get(), 60) == request


async def test_a_line_without_end_is_cut_off(controls, tmp_path):
    reply = await raw(tmp_path, b"x" * (4 * MAX_REQUEST_BYTES))
    assert reply["code"] == "too_long"
    assert controls.asked == []


async def test_half_a_line_is_no_request(controls, tmp_path):
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / NAME))
    writer.write(b'{"version":1,"verb":"stop"')
    writer.write_eof()
    assert json.loads(await reader.readline())["code"] == "bad_request"
    writer.close()
    assert controls.asked == []


async def test_who_says_nothing_holds_up_nobody_and_is_let_go(controls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.2)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / NAME))
    assert (await asked(tmp_path, StatusRequest())).pid == 7
    assert json.loads(await asyncio.wait_for(reader.readline(), 60))["code"] == "too_slow"
    assert await reader.read() == b""
    writer.close()


async def test_more_verbs_at_once_than_there_is_room_for_are_refused(controls, tmp_path):
    controls.blocks.clear()
    waiting = [asyncio.create_task(asked(tmp_path, StatusRequest())) for _ in range(4)]
    pairs = [
        await asyncio.open_unix_connection(str(tmp_path / NAME)) for _ in range(MAX_CONNECTIONS)
    ]
    reply = await raw(tmp_path, encode(StatusRequest()))
    assert reply["code"] == "busy"
    for _, writer in pairs:
        writer.close()
    controls.blocks.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, Answer | ControlRefused) for one in done)


async def test_the_socket_is_its_owners_alone_and_goes_with_the_worker(tmp_path):
    async with serving(tmp_path, Recorder(), runtime=tmp_path / "run"):
        mode = (tmp_path / NAME).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await asyncio.to_thread(is_running, tmp_path, runtime=tmp_path / "run")
    assert not (tmp_path / NAME).exists()
    assert not is_running(tmp_path, runtime=tmp_path / "run")
    with pytest.raises(NoWorker) as nobody:
        ask(tmp_path, StatusRequest(), runtime=tmp_path / "run")
    assert nobody.value.exit_code == 1


async def test_the_socket_of_a_killed_worker_is_nobody_and_is_replaced(tmp_path):
    dead, _ = bind(tmp_path, runtime=tmp_path / "run")
    dead.close()
    assert (tmp_path / NAME).exists()
    with pytest.raises(NoWorker, match="the last one was killed"):
        ask(tmp_path, StatusRequest(), runtime=tmp_path / "run")
    async with serving(tmp_path, Recorder(), runtime=tmp_path / "run"):
        assert (await asked(tmp_path, StatusRequest())).pid == 7


async def test_a_path_that_is_too_long_for_a_socket_leads_to_a_short_one(tmp_path):
    root, runtime = tmp_path / ("x" * MAX_PATH_BYTES), tmp_path / "run"
    root.mkdir()
    async with serving(root, Recorder(), runtime=runtime):
        assert (root / NAME).is_symlink()
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        answer = await asyncio.to_thread(ask, root, StatusRequest(), runtime=tmp_path / "other")
        assert answer.pid == 7, "the link leads there, whatever the environment of the verb"
        (root / NAME).unlink()
        assert (await asyncio.to_thread(ask, root, StatusRequest(), runtime=runtime)).pid == 7
    assert list(runtime.iterdir()) == []


def test_a_runtime_folder_into_which_others_can_reach_is_not_used(tmp_path):
    root, runtime = tmp_path / ("x" * MAX_PATH_BYTES), tmp_path / "run"
    root.mkdir()
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o777)
    with pytest.raises(NoPlace, match="is not this user's alone"):
        bind(root, runtime=runtime)
    runtime.rmdir()
    runtime.symlink_to(tmp_path)
    with pytest.raises(NoPlace):
        bind(root, runtime=runtime)


async def test_where_no_socket_can_be_the_worker_works_without(tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / "run").write_text("")
    async with serving(tmp_path, Recorder(), runtime=tmp_path / "run") as problem:
        assert "something else than a socket" in problem


def test_what_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / NAME).write_text("mine")
    listening, path = bind(tmp_path, runtime=tmp_path / "run")
    assert path.parent == tmp_path / "run"
    assert find(tmp_path, runtime=tmp_path / "run") == path
    listening.close()
    remove(tmp_path, path)
    assert (tmp_path / NAME).read_text() == "mine"


def test_a_worker_that_hangs_is_said_to(tmp_path):
    listening, _ = bind(tmp_path, runtime=tmp_path / "run")
    with pytest.raises(Silent, match="did not answer") as silent:
        ask(tmp_path, StatusRequest(), runtime=tmp_path / "run", seconds=0.2)
    assert silent.value.exit_code == 3
    listening.close()


@pytest.mark.parametrize("reply", [b"no json\n", b'{"version":9}\n', b""])
async def test_an_answer_of_something_else_is_refused(tmp_path, reply):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        writer.close()

    async with await asyncio.start_unix_server(answer, str(tmp_path / NAME)):
        with pytest.raises(ControlRefused if reply else Silent):
            await asked(tmp_path, StatusRequest())


@pytest.mark.parametrize("given", [None, "", "relative", "/" + "x" * 80])
def test_without_a_usable_runtime_folder_sockets_lie_in_tmp(monkeypatch, given):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
    assert runtime_folder() == Path(f"/tmp/hdee-{os.getuid()}")


def test_the_users_runtime_folder_is_used_if_there_is_one(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime_folder() == Path("/run/user/1000/hdee")


def test_another_users_socket_is_not_spoken_to(tmp_path, monkeypatch):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / NAME))
    assert find(tmp_path, runtime=tmp_path / "run") == tmp_path / NAME
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert find(tmp_path, runtime=tmp_path / "run") is None
    listening.close()
