"""A worker asks the real api whether others can dial it: real peers, sockets and refusals."""

import asyncio

import httpx
import pytest
from hivemind.p2p import P2P
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from coordinator.api.reachability import BURST_REQUESTS, GREETING
from coordinator.ledger import queries
from protocol.errors import ErrorCode
from protocol.messages import ReachabilityRequest
from shared.identity import Identity
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, Refused
from worker.reachability import ask


@pytest.fixture
async def greeting():
    """The port of a listener that greets as a libp2p peer does."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.fixture
async def connect(api, tmp_path, make):
    """A registered worker's client, as it seems to come from `host`."""
    clients = []

    async def connect(
        host: str = "127.0.0.1", *, url: str = "http://127.0.0.1", app=api.app, headers=None
    ) -> CoordinatorClient:
        identity = Identity.create(tmp_path / f"{len(clients)}.key")
        client = CoordinatorClient(url, identity)
        await client.http.aclose()
        transport = httpx.ASGITransport(app=app, client=(host, 4711))
        client.http = httpx.AsyncClient(transport=transport, headers=headers)
        clients.append(client)
        info = await client.run_info()
        await client.register(info, make.capability(), name="", invite=None, maddrs=())
        return client

    yield connect
    for client in clients:
        await client.close()


async def test_a_real_libp2p_peer_is_found_reachable_where_it_listens(connect):
    client = await connect()
    peer = await P2P.create(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], auto_nat=False, use_relay=False, use_auto_relay=False
    )
    try:
        listen = [str(maddr) for maddr in await peer.get_visible_maddrs()]
        found = await ask(client, listen)
    finally:
        await peer.shutdown()
    assert (found.state, found.fix) == ("reachable", "")
    assert found.announce == tuple(maddr.partition("/p2p/")[0] for maddr in listen)


async def test_a_port_where_nothing_listens_is_unreachable_with_a_fix(connect):
    found = await ask(await connect(), ["/ip4/127.0.0.1/tcp/1"])
    assert (found.state, found.observed) == ("unreachable", "127.0.0.1")
    assert "refuses" in found.words
    assert "--listen" in found.fix


async def test_the_address_that_the_proxy_names_is_the_one_that_is_dialled(api, connect, greeting):
    behind = ProxyHeadersMiddleware(api.app, trusted_hosts="10.9.8.7")
    said = {"X-Forwarded-For": "198.51.100.1, 127.0.0.1"}
    client = await connect("10.9.8.7", app=behind, headers=said)
    found = await ask(client, [f"/ip4/192.168.1.5/tcp/{greeting}"])
    assert (found.state, found.observed) == ("reachable", "127.0.0.1")


async def test_who_is_no_trusted_proxy_cannot_name_somebody_else(api, connect, greeting):
    behind = ProxyHeadersMiddleware(api.app, trusted_hosts="10.9.8.7")
    client = await connect("127.0.0.1", app=behind, headers={"X-Forwarded-For": "198.51.100.1"})
    found = await ask(client, [f"/ip4/198.51.100.1/tcp/{greeting}"])
    assert found.observed == "127.0.0.1"


async def test_behind_a_proxy_that_does_not_tell_who_asks_nothing_is_dialled(
    api, connect, greeting
):
    own = (f"/dns4/hdee.example.org/tcp/8702/p2p/{api.identity.peer_id}",)
    with api.ledger.begin() as connection:
        queries.set_network(connection, maddrs=own, blob_url="http://a", now=api.clock())
    client = await connect("127.0.0.1", url="http://hdee.example.org")
    answer = await client.reachability(ReachabilityRequest(maddrs=(f"/dns/a/tcp/{greeting}",)))
    assert [one.outcome for one in answer.dialled] == ["not_dialled"]
    found = await ask(client, [f"/ip4/192.168.1.5/tcp/{greeting}"])
    assert (found.state, found.announce) == ("unknown", (f"/ip4/192.168.1.5/tcp/{greeting}",))
    assert "X-Forwarded-For" in found.fix


async def test_an_api_that_cannot_tell_where_a_request_comes_from_dials_nobody(connect):
    found = await ask(await connect("a unix socket"), ["/ip4/192.168.1.5/tcp/4001"])
    assert found.state == "unknown"
    assert "cannot tell which address you ask from" in found.words


async def test_a_worker_that_asks_too_often_is_told_when_to_come_again(connect):
    client = await connect()
    request = ReachabilityRequest(maddrs=("/ip4/127.0.0.1/tcp/0",))
    for _ in range(BURST_REQUESTS):
        await client.reachability(request)
    with pytest.raises(CoordinatorBusy) as busy:
        await client.reachability(request)
    assert busy.value.retry_after_seconds
    found = await ask(client, ["/ip4/192.168.1.5/tcp/4001"])
    assert found.state == "unknown"
    assert found.announce


async def test_a_stranger_without_a_token_is_dialled_nowhere(connect, greeting):
    client = await connect()
    client._token = None
    request = ReachabilityRequest(maddrs=(f"/ip4/127.0.0.1/tcp/{greeting}",))
    with pytest.raises(Refused) as refused:
        await client.reachability(request)
    assert refused.value.code is ErrorCode.UNKNOWN_TOKEN


@pytest.mark.parametrize(
    "maddrs",
    [["/ip4/127.0.0.1/tcp/1\n"], ["/ip4/127.0.0.1/tcp/1 /x"], ["127.0.0.1:1"], ["/a"] * 9, "/a"],
)
async def test_addresses_that_are_none_or_too_many_are_refused_whole(api, connect, maddrs):
    client = await connect()
    path = "http://127.0.0.1/v1/workers/reachability"
    response = await client.http.post(path, json={"maddrs": maddrs}, headers=client.headers)
    assert response.status_code == 422
    assert response.json()["code"] == "bad_request"
