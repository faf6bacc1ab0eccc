"""A worker's real client and agent at the real app, over a line that may be bad."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.ledger import queries
from coordinator.scoring.verification import Accepted
from protocol.messages import LeaseRequest, Offer, Submission
from worker.agent import Agent
from worker.client import CoordinatorClient, new_request_id
from worker.device import Device
from worker.errors import CoordinatorBusy
from worker.folder import WorkerFolder
from worker.lease import Lease
from worker.membership import Membership
from worker.settings import JoinSettings
from worker.shelf import Shelf
from worker.status import Board

URL = "https://coordinator"
FAST = pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 0.5}], indirect=True)


class Line(httpx.AsyncBaseTransport):
    """What lies between a worker and the app. `fault` gets each request with the app's answer."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.paths: list[str] = []
        self.silent: str | None = None
        """Calls to paths with this in them get no answer."""

        self.fault: Callable[[str, httpx.Response], httpx.Response] = lambda _path, answer: answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        answer = await transport.handle_async_request(request)
        await answer.aread()
        self.paths.append(request.url.path)
        if self.silent is not None and self.silent in request.url.path:
            await asyncio.Event().wait()
        return self.fault(request.url.path, answer)


class Said:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, event: dict[str, Any], *, durable_step: int | None) -> None:
        del event, durable_step

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Worker:
    """One worker's folder, screen and line."""

    def __init__(self, api: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = api
        self.line = Line(api.app)
        self.said = Said()
        self.folder = WorkerFolder(folder)
        self.settings = JoinSettings(url=URL, folder=folder, http_only=True)
        self._monkeypatch = monkeypatch
        self.members: list[Membership] = []

    @property
    def peer_id(self) -> str:
        return self.folder.identity.peer_id

    def client(self, url: str, identity: Any) -> CoordinatorClient:
        client = CoordinatorClient(url, identity)
        client.http = httpx.AsyncClient(transport=self.line)
        return client

    async def join(self, capability: Any) -> Membership:
        """As a start of the worker does."""
        with self._monkeypatch.context() as patched:
            patched.setattr("worker.membership.CoordinatorClient", self.client)
            member = Membership(self.settings, self.folder, self.said)
        self.members.append(member)
        await member.find_coordinator()
        await member.register(capability)
        return member

    def agent(self, **settings: Any) -> Agent:
        self._monkeypatch.setattr("worker.membership.CoordinatorClient", self.client)
        changed = JoinSettings(url=URL, folder=self.folder.root, http_only=True, **settings)
        return Agent(changed, self.folder, self.said)


def add_work(api: Any, make: Any, *, count: int = 1, **changes: Any) -> list[str]:
    with api.ledger.begin() as connection:
        return [
            queries.add_assignment(
                connection,
                spec := make.spec(**({"rng_seed": number} | changes)),
                shard=make.shard(spec.domain, "train").blob,
                schemes=("MHo-IHo",),
                now=api.clock(),
            )
            for number in range(count)
        ]


async def ask(member: Membership, make: Any, *cached: str) -> Offer:
    request = LeaseRequest(request_id=new_request_id(), capability=make.capability(), cached=cached)
    answer = await member.call(lambda: member.client.lease(request))
    assert answer.offer is not None, answer.reason
    return answer.offer


async def start(member: Membership, make: Any, *cached: str) -> Offer:
    offer = await ask(member, make, *cached)
    await member.client.acknowledge(offer.assignment, offer.fencing)
    return offer


def lease_of(member: Membership, offer: Offer) -> Lease:
    board = Board.around(member.screen)
    return Lease(member, offer, Shelf(member, offer, board), board)


def device_of(member: Membership, said: Any) -> Device:
    return Device(
        settings=member.settings,
        folder=member.folder,
        board=Board.around(said),
        capability=member.capability,
    )


def submission(make: Any, offer: Offer, words: str = "expert") -> Submission:
    return Submission(
        request_id=new_request_id(),
        fencing=offer.fencing,
        manifest=make.blob(words),
        tokens_per_second=64.0,
        train_seconds=1.0,
    )


def accept(api: Any, make: Any, offer: Offer, worker: str) -> None:
    """What network role and scorer do with a submission."""
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        manifest = make.manifest(offer.spec, worker)
        queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())
        queries.record_verification(
            connection, offer.assignment, offer.fencing, Accepted(), "good", api.clock()
        )


async def do_work(api: Any, make: Any, member: Membership) -> Offer:
    offer = await start(member, make)
    words = secrets.token_hex(8)
    await member.client.submit(offer.assignment, submission(make, offer, words))
    accept(api, make, offer, member.folder.identity.peer_id)
    return offer


async def until(what: str, condition: Callable[[], Any], *, seconds: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.02)


async def call_too_often(member: Membership) -> None:
    with contextlib.suppress(CoordinatorBusy):
        while True:
            await member.beat()


def kinds(api: Any) -> list[str]:
    with api.ledger.read() as connection:
        return [entry.kind for entry in queries.read_entries(connection)]


def cancel(api: Any, assignment: str) -> None:
    with api.ledger.begin() as connection:
        row = queries.get_assignment(connection, assignment)
        queries.cancel_assignment(connection, row, reason="not needed", now=api.clock())
