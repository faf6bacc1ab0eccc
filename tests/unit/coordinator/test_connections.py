"""Which connections the coordinator's HTTP servers end, and which slow ones they keep."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from coordinator.connections import MAX_HEAD_BYTES, GuardedHttp
from coordinator.network import serve
from coordinator.roles import api
from coordinator.serving import listening
from shared.exchange.rates import STALL_BYTES

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"
REQUEST = HEAD + b"content-length: 0\r\n\r\n"
BIG = 64 * 2**20
"""More than what all buffers of a connection hold."""


class Patient(GuardedHttp):
    """Nothing runs out by itself: a test ends each window."""

    head_seconds = body_seconds = unread_seconds = 3600.0


class Hasty(Patient):
    """Headers and windows of a body run out at once; keep-alive is uvicorn's."""

    head_seconds = body_seconds = 0.2


class Unread(Patient):
    unread_seconds = 0.2


class App:
    """Answers with the length of the body, or with BIG bytes at /big; reads when `may_read`."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.may_read.wait()
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        answer = bytes(BIG) if scope["path"] == "/big" else str(size).encode()
        head = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})


class Running:
    """A uvicorn server of an app, with the protocol that a test chose."""

    def __init__(self, protocol: type[GuardedHttp]) -> None:
        self.app = App()
        config = uvicorn.Config(
            self.app, log_config=None, lifespan="off", http=protocol, timeout_keep_alive=3600
        )
        self.server = uvicorn.Server(config)
        self.port = 0

    @property
    def connections(self) -> set[Any]:
        return self.server.server_state.connections

    async def open(self, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(said)
        return reader, writer

    async def only(self) -> Any:
        """The protocol of the only connection."""
        await until(lambda: len(self.connections) == 1)
        return next(iter(self.connections))


@asynccontextmanager
async def running(protocol: type[GuardedHttp]) -> AsyncIterator[Running]:
    one = Running(protocol)
    with listening("127.0.0.1", 0) as listener:
        one.port = listener.getsockname()[1]
        serving = asyncio.create_task(one.server.serve([listener]))
        await until(lambda: one.server.started)
        try:
            yield one
        finally:
            one.server.should_exit = True
            for connection in tuple(one.connections):
                connection.transport.abort()
            await serving


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("said", "drip"),
    [
        pytest.param(b"", b"", id="silence"),
        pytest.param(HEAD, b"", id="half a header"),
        pytest.param(HEAD + b"x: ", b"a", id="a header by the byte"),
        pytest.param(REQUEST + HEAD + b"x: ", b"a", id="the second header by the byte"),
        pytest.param(REQUEST, b"\r\n", id="empty lines behind an answer"),
        pytest.param(HEAD + b"content-length: 9999\r\n\r\n", b"a", id="a body by the byte"),
        pytest.param(
            HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n", id="chunks by the byte"
        ),
    ],
)
async def test_who_keeps_the_server_waiting_is_hung_up_on(said: bytes, drip: bytes) -> None:
    async with running(Hasty) as one:
        reader, writer = await one.open(said)
        async with asyncio.timeout(60):
            ended = False
            while not ended:
                with contextlib.suppress(TimeoutError, OSError):
                    writer.write(drip)
                    ended = not await asyncio.wait_for(reader.read(1000), 0.05)
                ended = ended or not one.connections
        await until(lambda: not one.connections)
        writer.close()


async def test_who_never_reads_an_answer_is_hung_up_on() -> None:
    async with running(Unread) as one:
        _, writer = await one.open(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        await until(lambda: bool(one.connections))
        await until(lambda: not one.connections)
        writer.close()


async def test_a_header_without_end_is_refused_before_it_is_kept() -> None:
    async with running(Patient) as one:
        reader, writer = await one.open(HEAD + b"x: " + MAX_HEAD_BYTES * b"a")
        assert (await reader.readline()).split()[1] == b"400"
        await until(lambda: not one.connections)
        writer.close()


async def test_an_idle_connection_is_left_to_keep_alive() -> None:
    """Between two requests nothing is awaited, so a heartbeat finds its connection open."""
    async with running(Patient) as one:
        reader, writer = await one.open(REQUEST)
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n0")
            assert (await one.only())._reading is None
            writer.write(REQUEST)
        writer.close()


async def test_a_slow_body_that_keeps_its_pace_arrives() -> None:
    windows = 3
    async with running(Patient) as one:
        length = windows * STALL_BYTES + 1
        reader, writer = await one.open(HEAD + b"content-length: %d\r\n\r\n" % length)
        protocol = await one.only()
        await until(lambda: protocol._reading is not None and protocol._awaited == "body")
        for _ in range(windows):
            writer.write(bytes(STALL_BYTES))
            await until(lambda: protocol._num_bytes >= STALL_BYTES)
            protocol._reading.cancel()
            protocol._check_body()
            assert not protocol.transport.is_closing()
        writer.write(b"x")
        await reader.readuntil(b"\r\n\r\n%d" % length)
        assert protocol._reading is None
        writer.close()


async def test_a_body_that_must_wait_for_the_app_is_not_slow() -> None:
    length = 8 * 2**20
    async with running(Patient) as one:
        one.app.may_read.clear()
        reader, writer = await one.open(HEAD + b"content-length: %d\r\n\r\n" % length)
        protocol = await one.only()
        writer.write(bytes(length))
        await until(lambda: protocol.flow.read_paused)
        for _ in range(3):
            protocol._reading.cancel()
            protocol._check_body()
            assert not protocol.transport.is_closing()
        one.app.may_read.set()
        await reader.readuntil(b"\r\n\r\n%d" % length)
        writer.close()


async def test_who_waits_to_be_told_to_go_on_is_not_slow() -> None:
    async with running(Patient) as one:
        one.app.may_read.clear()
        head = HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        reader, writer = await one.open(head)
        protocol = await one.only()
        await until(lambda: protocol._awaited == "body" and protocol._reading is not None)
        protocol._reading.cancel()
        protocol._check_body()
        assert not protocol.transport.is_closing()
        one.app.may_read.set()
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b"ab")
        await reader.readuntil(b"\r\n\r\n2")
        writer.close()


@pytest.mark.parametrize("role", [api, serve])
def test_both_roles_listen_with_the_guard(role: Any) -> None:
    assert "http=GuardedHttp" in inspect.getsource(role)
