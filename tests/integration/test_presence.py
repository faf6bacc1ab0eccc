"""A worker's presence beside the real api: peers that come late, dialling that fails."""

import asyncio
import contextlib

import httpx
import pytest

from coordinator.ledger import queries
from protocol.blobs import BlobRef
from protocol.records import HeadRecord
from shared.clock import now
from shared.exchange.serving import BlobServer
from shared.identity import sign_certificate
from shared.swarm.peer import Peer
from worker.client import CoordinatorClient
from worker.folder import WorkerFolder
from worker.presence import Presence
from worker.settings import JoinSettings

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
REF = BlobRef(digest="ab" * 32, size=5)
HEAD = HeadRecord(s=40, h="ab" * 32, n=1234, f=3)
ASSIGNMENT = "a" + "0" * 16


class Worker:
    """A registered worker's folder, its client of the real api, and its presence."""

    def __init__(self, api, folder):
        self.api = api
        self.folder = folder
        self.said = []
        self.settings = JoinSettings(
            url="http://127.0.0.1", folder=folder.root, listen=(LOOPBACK,), insecure=True
        )
        self.client = CoordinatorClient("http://127.0.0.1", folder.identity)
        self.peer_id = folder.identity.peer_id
        self.presence = self._presence()

    def _presence(self):
        return Presence(
            settings=self.settings,
            folder=self.folder,
            client=self.client,
            server=BlobServer(self.folder.blobs, lambda _digest, _peer: True),
            say=self.said.append,
        )

    def certificate(self, peer):
        return sign_certificate(
            self.api.identity, peer=peer, run=self.info.run, expires_at=int(now()) + 3600
        )

    async def register(self, capability):
        await self.client.http.aclose()
        self.seen_from("127.0.0.1")
        self.info = await self.client.run_info()
        await self.client.register(self.info, capability, name="", invite=None, maddrs=())

    def seen_from(self, host):
        transport = httpx.ASGITransport(app=self.api.app, client=(host, 4711))
        self.client.http = httpx.AsyncClient(transport=transport)

    async def start(self, bootstrap=()):
        certificate = self.certificate(self.peer_id)
        await self.presence.start(self.info, certificate=certificate, bootstrap=bootstrap)
        self.tending = asyncio.create_task(self.presence.tend())

    async def stop(self):
        self.tending.cancel()
        await asyncio.gather(self.tending, return_exceptions=True)
        await self.presence.stop()


@pytest.fixture
async def stack(monkeypatch):
    monkeypatch.setattr("worker.presence.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("shared.swarm.joining.REJOIN_SECONDS", 0.3)
    monkeypatch.setattr("shared.swarm.joining.BACKOFF_SECONDS", 0.2)
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def worker(api, tmp_path, make, stack):
    folder = WorkerFolder(tmp_path / "worker")
    stack.callback(folder.close)
    worker = Worker(api, folder)
    await worker.register(make.capability())
    stack.push_async_callback(worker.client.close)
    return worker


async def coordinator_peer(worker, stack):
    """The network role's peer, and the ledger told of it."""
    identity = worker.api.identity
    peer = await Peer.start(
        identity=identity,
        certificate=worker.certificate(identity.peer_id),
        coordinator=identity.peer_id,
        run=worker.info.run,
        listen=[LOOPBACK],
        bootstrap=[],
        server=BlobServer(worker.folder.blobs, lambda _digest, _peer: False),
    )
    stack.push_async_callback(peer.stop)
    await peer.announce_beacon()
    with worker.api.ledger.begin() as connection:
        queries.set_network(
            connection, maddrs=peer.maddrs, blob_url="http://a", now=worker.api.clock()
        )
    return peer


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - peers have no event for each condition
            await asyncio.sleep(0.02)


async def test_a_worker_joins_whoever_rest_names_later_and_finds_them_again_without_rest(
    worker, stack
):
    await worker.start()
    stack.push_async_callback(lambda: worker.stop())
    worker.presence.publish([REF], head=(ASSIGNMENT, HEAD))
    peer = await coordinator_peer(worker, stack)
    await until(lambda: worker.presence.peer.joined)
    await until(lambda: worker.presence.maddrs)
    [words] = worker.said
    assert "others can dial this worker" in words
    async with asyncio.timeout(60):
        while await peer.head(ASSIGNMENT, worker.peer_id) != HEAD:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    [(owner, record)] = await peer.providers(REF.digest)
    assert (owner, record.m) == (worker.peer_id, worker.presence.maddrs)

    await worker.stop()
    worker.presence = worker._presence()
    with worker.api.ledger.begin() as connection:
        queries.set_network(connection, maddrs=(), blob_url="http://a", now=worker.api.clock())
    await worker.start(bootstrap=())
    await until(lambda: worker.presence.peer.joined)


async def test_a_worker_that_nobody_can_dial_becomes_a_client_until_somebody_can(
    worker, stack, monkeypatch
):
    retest = {"unknown": 1.0, "unreachable": 1.5, "reachable": 60.0}
    monkeypatch.setattr("worker.presence.RETEST_SECONDS", retest)
    monkeypatch.setattr("coordinator.api.reachability.BURST_REQUESTS", 1000)
    peer = await coordinator_peer(worker, stack)
    worker.seen_from("127.0.0.2")
    await worker.start(bootstrap=peer.maddrs)
    stack.push_async_callback(lambda: worker.stop())
    presence = worker.presence
    await until(lambda: presence.peer.client_mode and presence.peer.healthy)
    assert presence.maddrs == ()
    assert presence.reachability.state == "unreachable"
    assert "--listen" in worker.said[-1]
    presence.publish([REF])
    async with asyncio.timeout(60):
        while not await peer.providers(REF.digest):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    worker.seen_from("127.0.0.1")
    await until(lambda: not presence.peer.client_mode and presence.peer.healthy)
    await until(lambda: presence.maddrs)
    assert "others can dial" in worker.said[-1]
