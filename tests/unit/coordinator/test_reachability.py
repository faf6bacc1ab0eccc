"""The api dials back: only whoever asks, only some ports, only for some seconds."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api import reachability
from coordinator.api.errors import ApiError
from coordinator.api.reachability import (
    BURST_REQUESTS,
    GREETING,
    MAX_DIALS,
    MAX_PORTS,
    REQUEST_SECONDS,
    Dialler,
    dialable,
    nothing_dialled,
    ports_of,
)
from protocol.errors import ErrorCode

HERE = ipaddress.ip_address("127.0.0.1")
THERE = ipaddress.ip_address("203.0.113.7")


@contextlib.asynccontextmanager
async def listener(
    *says: bytes, close: bool = False, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A port that says this to whoever connects, and then hangs unless it is to close."""
    done = asyncio.Event()
    opened: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        for words in says:
            writer.write(words)
            with contextlib.suppress(OSError):
                await writer.drain()
        if not close:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        done.set()
        server.close()
        for writer in opened:
            writer.transport.abort()
        await server.wait_closed()


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def outcome_of(*maddrs: str) -> list[str]:
    answer = await Dialler().dial_back(HERE, maddrs)
    assert answer.observed == "127.0.0.1"
    return [dialled.outcome for dialled in answer.dialled]


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(reachability, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(reachability, "GREETING_SECONDS", 0.2)


async def test_a_libp2p_listener_is_reachable():
    async with listener(GREETING) as port:
        assert await outcome_of(f"/ip4/127.0.0.1/tcp/{port}") == ["reachable"]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_a_libp2p_listener_on_ipv6_is_reachable():
    async with listener(GREETING, host="::1") as port:
        maddrs = [f"/ip6/fd00::5/tcp/{port}", f"/ip4/10.0.0.9/tcp/{port}"]
        answer = await Dialler().dial_back(ipaddress.ip_address("::1"), maddrs)
    assert [one.outcome for one in answer.dialled] == ["reachable", "not_dialled"]


async def test_a_greeting_may_come_in_parts_and_with_more_behind_it():
    async with listener(GREETING[:3], GREETING[3:] + b"\x07/noise\n") as port:
        assert await outcome_of(f"/ip4/127.0.0.1/tcp/{port}") == ["reachable"]


@pytest.mark.parametrize("host", ["/ip4/198.51.100.1", "/dns4/elsewhere.example", "/dns/a"])
async def test_the_port_is_dialled_where_the_request_came_from_whatever_host_is_named(host):
    async with listener(GREETING) as port:
        assert await outcome_of(f"{host}/tcp/{port}") == ["reachable"]


async def test_a_port_where_nobody_listens_refuses():
    assert await outcome_of(f"/ip4/127.0.0.1/tcp/{closed_port()}") == ["refused"]


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"\x13/multistream/2.0.0\n"])
async def test_another_server_is_not_libp2p_and_its_words_are_not_passed_on(words):
    async with listener(words) as port:
        answer = await Dialler().dial_back(HERE, [f"/ip4/127.0.0.1/tcp/{port}"])
    (dialled,) = answer.dialled
    assert dialled.outcome == "not_libp2p"
    assert "SSH" not in dialled.detail
    assert "2.0" not in dialled.detail


async def test_a_listener_that_says_nothing_is_given_up(hurried):
    async with listener() as port:
        assert await outcome_of(f"/ip4/127.0.0.1/tcp/{port}") == ["not_libp2p"]


@pytest.mark.parametrize("says", [(), (GREETING[:-1],)])
async def test_a_listener_that_hangs_up_too_early_is_not_libp2p(says):
    async with listener(*says, close=True) as port:
        assert await outcome_of(f"/ip4/127.0.0.1/tcp/{port}") == ["not_libp2p"]


async def test_a_port_that_answers_nothing_at_all_is_given_up(hurried):
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # Linux drops what comes when the queue of a listener is full.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        assert await outcome_of(f"/ip4/127.0.0.1/tcp/{port}") == ["timed_out"]


async def test_an_address_that_no_route_leads_to_is_told():
    nowhere = ipaddress.ip_address("255.255.255.255")
    answer = await Dialler().dial_back(nowhere, ["/dns/a/tcp/4001"])
    assert answer.dialled[0].outcome == "no_route"


async def test_one_port_under_several_addresses_is_dialled_once():
    dials = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        writer.write(GREETING)
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hosts = ("10.0.0.1", "127.0.0.1", "192.168.7.7")
    assert await outcome_of(*(f"/ip4/{host}/tcp/{port}" for host in hosts)) == ["reachable"] * 3
    assert dials == 1
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("maddr", "why"),
    [
        ("/ip4/203.0.113.7/udp/4001/quic-v1", "udp"),
        ("/ip4/203.0.113.7/tcp/0", "port 0"),
        ("/ip6/2001:db8::7/tcp/4001", "no IPv4"),
        ("/dns6/a.example/tcp/4001", "no IPv4"),
        ("/ip4/203.0.113.7/tcp/4001/ws", "ws"),
    ],
)
def test_what_plain_tcp_does_not_lead_to_is_not_dialled(maddr, why):
    found = ports_of([maddr], THERE)[maddr]
    assert isinstance(found, str)
    assert why in found


@given(st.lists(st.integers(0, 70_000).map("/ip4/203.0.113.7/tcp/{}".format), max_size=8))
def test_no_request_dials_more_than_its_ports(maddrs):
    found = ports_of(maddrs, THERE)
    assert set(found) == set(maddrs)
    ports = {port for port in found.values() if isinstance(port, int)}
    assert len(ports) <= MAX_PORTS
    assert all(1 <= port <= 65_535 for port in ports)


@pytest.mark.parametrize(
    ("host", "observed"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("192.168.1.7", "192.168.1.7"),
    ],
)
def test_a_caller_is_dialled_where_it_comes_from(host, observed):
    assert str(dialable(host, own=["/dns4/hdee.example.org/tcp/8702"])[0]) == observed


@pytest.mark.parametrize(
    "host",
    [None, "", "testclient", "unknown", "0.0.0.0", "224.0.0.1", "169.254.169.254", "fe80::1"],
)
def test_what_is_no_callers_address_is_not_dialled(host):
    observed, why = dialable(host, own=[])
    assert observed is None
    assert why


@pytest.mark.parametrize(
    ("own", "dialled"),
    [
        ((), True),
        (("/ip4/127.0.0.1/tcp/8702", "/ip4/192.168.1.7/tcp/8702"), True),
        (("/dns4/localhost/tcp/8702",), True),
        (("/dns4/hdee.example.org/tcp/8702",), False),
        (("/ip4/203.0.113.7/tcp/8702",), False),
    ],
)
def test_loopback_is_dialled_only_for_a_run_that_is_served_there(own, dialled):
    assert (dialable("127.0.0.1", own=own)[0] is not None) == dialled


def test_the_answer_to_a_caller_who_is_not_dialled_says_why():
    answer = nothing_dialled("169.254.1.1", ["/dns/a/tcp/1", "/dns/a/tcp/1"], "because")
    assert answer.observed == "169.254.1.1"
    assert [(one.outcome, one.detail) for one in answer.dialled] == [("not_dialled", "because")]


def test_a_worker_is_dialled_a_few_times_and_then_at_an_even_pace():
    dialler = Dialler()
    for _ in range(BURST_REQUESTS):
        dialler.admit("anna", now=1000.0)
    with pytest.raises(ApiError) as refused:
        dialler.admit("anna", now=1000.0)
    assert refused.value.body.code is ErrorCode.RATE_LIMITED
    assert refused.value.body.retry_after_seconds == pytest.approx(REQUEST_SECONDS)
    dialler.admit("bert", now=1000.0)
    dialler.admit("anna", now=1000.0 + REQUEST_SECONDS)


async def test_no_more_is_dialled_at_once_than_the_api_can_afford(hurried):
    dialler = Dialler()
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(listener()) for _ in range(MAX_PORTS)]
        maddrs = [f"/dns/a/tcp/{port}" for port in ports]
        requests = [dialler.dial_back(HERE, maddrs) for _ in range(MAX_DIALS // MAX_PORTS + 1)]
        *answers, last = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(last, ApiError)
        assert last.body.code is ErrorCode.BUSY
        assert last.body.retry_after_seconds
        assert not [answer for answer in answers if isinstance(answer, BaseException)]
        assert (await dialler.dial_back(HERE, maddrs)).dialled[0].outcome == "not_libp2p"
