"""Desks of one worker: none of them disturbs what another one does."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.ledger import queries
from protocol.messages import LeaseRequest, Offer
from worker.asking import give_back
from worker.boards import WholeBoard
from worker.client import CoordinatorClient, new_request_id
from worker.deliveries import Deliveries
from worker.desk import Desk, Leaving
from worker.device import Device
from worker.folder import WorkerFolder
from worker.manners.watch import Manners
from worker.membership import Membership
from worker.settings import JoinSettings
from worker.status import WorkerStatus


class Heard:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, event: Any, *, durable_step: int | None) -> None:
        del event, durable_step


class Trainings:
    """Stand for trainings whose leases are lost; the first one takes its time to end."""

    def __init__(self) -> None:
        self.may_end, self.first = asyncio.Event(), asyncio.Event()
        self.begun: list[int] = []
        self.underway = 0

    def __call__(self, member: Membership, device: Device, offer: Offer, manners: Manners) -> Any:
        del member, offer, manners
        self.number = device.number
        self.handed_in = self.submission = None
        return self

    async def run(self, stopping: asyncio.Event) -> str:
        del stopping
        self.begun.append(self.number)
        self.first.set()
        self.underway += 1
        assert self.underway == 1, "two trainings in one folder"
        await self.may_end.wait()
        self.underway -= 1
        return "lost"


@dataclass
class Two:
    """A worker of two devices that has registered, and its desks."""

    api: Any
    make: Any
    member: Membership
    desks: tuple[Desk, Desk]
    leaving: Leaving
    said: list[str]

    async def offered(self, number: int) -> Offer:
        request = LeaseRequest(
            request_id=new_request_id(), capability=self.make.capability(), device_number=number
        )
        answer = await self.member.client.lease(request)
        assert answer.offer is not None, answer.reason
        return answer.offer

    def add_work(self, count: int) -> None:
        for rng_seed in range(count):
            spec = self.make.spec(rng_seed=rng_seed)
            shard = self.make.shard(spec.domain, "train").blob
            with self.api.ledger.begin() as connection:
                queries.add_assignment(
                    connection, spec, shard=shard, schemes=("MHo-IHo",), now=self.api.clock()
                )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Time passes for the coordinator until the condition holds."""
        async with asyncio.timeout(120):
            while not condition():
                self.api.clock.advance(0.05)
                await asyncio.sleep(0.01)


@pytest.fixture
async def two(
    api: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Two]:
    def client(url: str, identity: Any) -> CoordinatorClient:
        made = CoordinatorClient(url, identity)
        made.http = api.http
        return made

    monkeypatch.setattr("worker.membership.CoordinatorClient", client)
    said: list[str] = []
    folder = WorkerFolder(tmp_path / "anna")
    settings = JoinSettings(url="http://127.0.0.1:9", folder=folder.root, http_only=True)
    whole = WholeBoard(Heard(said), WorkerStatus(), ("cpu 1", "cpu 2"))
    member = Membership(settings, folder, whole)
    try:
        await member.find_coordinator()
        await member.register(make.capability())
        leaving, deliveries = Leaving(), Deliveries(member)
        first, second = (
            Desk(
                member,
                Device(
                    settings=settings,
                    folder=folder,
                    board=board,
                    capability=make.capability(),
                    number=number,
                ),
                Manners(),
                deliveries,
                leaving=leaving,
                num_devices=2,
            )
            for number, board in enumerate(whole.parts)
        )
        yield Two(api, make, member, (first, second), leaving, said)
    finally:
        folder.close()


async def test_work_that_comes_back_on_another_device_waits_until_the_first_has_ended_its_own(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both train in the same folder: the one that ends would delete what the other writes."""
    trainings = Trainings()
    monkeypatch.setattr("worker.desk.Work", trainings)
    two.add_work(1)
    first, second = two.desks
    old = asyncio.create_task(first._take(await two.offered(0)))
    await asyncio.wait_for(trainings.first.wait(), 60)
    two.api.pass_time(100.0)
    again = await two.offered(1)
    new = asyncio.create_task(second._take(again))
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert trainings.begun == [0]
    trainings.may_end.set()
    await asyncio.gather(old, new)
    assert trainings.begun == [0, 1]
    assert again.fencing == 2
    assert two.member.folder.remembered_offers() == {}


class ShortTrainings:
    """Stand for trainings that are given back at once; which device took which is noted."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def __call__(self, member: Membership, device: Device, offer: Offer, manners: Manners) -> Any:
        del manners
        self.begun.append(device.number)
        return ShortTraining(member, offer)


class ShortTraining:
    handed_in = submission = None

    def __init__(self, member: Membership, offer: Offer) -> None:
        self.member, self.offer = member, offer

    async def run(self, stopping: asyncio.Event) -> str:
        del stopping
        await give_back(self.member, self.offer, "stopped", "")
        return "released"


class FullDisk:
    """A disk on which one device finds no room, until it is mended."""

    def __init__(self, number: int) -> None:
        self.number: int | None = number
        self.refused: list[str] = []
        self._remember = WorkerFolder.remember_offer

    def remember_offer(self, folder: WorkerFolder, offer: Offer, device_number: int = 0) -> None:
        if device_number == self.number:
            self.refused.append(offer.assignment)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "offer-1.json")
        self._remember(folder, offer, device_number)


@pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 0.5}], indirect=True)
async def test_a_device_with_a_full_disk_stops_no_other_and_works_once_there_is_room(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings, disk = ShortTrainings(), FullDisk(1)
    monkeypatch.setattr("worker.desk.Work", trainings)
    monkeypatch.setattr("worker.desk.TROUBLE_SECONDS", 0.1)
    monkeypatch.setattr(
        WorkerFolder, "remember_offer", lambda *arguments: disk.remember_offer(*arguments)
    )
    two.add_work(60)
    first, second = (asyncio.create_task(desk.run()) for desk in two.desks)
    await two.until(lambda: len(disk.refused) > 1)
    done = len(trainings.begun)
    await two.until(lambda: len(trainings.begun) > done)
    assert set(trainings.begun) == {0}
    assert not first.done()
    assert not second.done()
    words = [line for line in two.said if "this device has trouble" in line]
    assert words[0].startswith("cpu 2: this device has trouble, next try in ")
    assert os.strerror(errno.ENOSPC) in words[0]
    with two.api.ledger.read() as connection:
        held = queries.live_leases_of(connection, two.member.folder.identity.peer_id)
    assert all(one.assignment not in disk.refused for one in held if one.device_number == 1)

    disk.number = None
    await two.until(lambda: 1 in trainings.begun)
    two.leaving.leaving.set()
    assert await asyncio.gather(first, second) == ["left", "left"]


async def test_the_only_device_with_a_full_disk_ends_the_worker_with_the_error(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(0)
    monkeypatch.setattr(
        WorkerFolder, "remember_offer", lambda *arguments: disk.remember_offer(*arguments)
    )
    two.add_work(1)
    only = two.desks[0]
    only._num_devices = 1
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        await only.run()
    with two.api.ledger.read() as connection:
        assert not queries.live_leases_of(connection, two.member.folder.identity.peer_id)
