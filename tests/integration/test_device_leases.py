"""Workers of several devices, by the real client at the real app: one lease a device."""

import asyncio
import secrets
from typing import Any

import pytest

from coordinator.api.limits import BURST_CALLS
from coordinator.ledger import queries
from coordinator.lifecycle import FIRST_STEP_FACTOR, STALL_INTERVALS, STALL_STEPS
from coordinator.scoring.verification import Accepted
from protocol.capability import MIN_FLOPS_PER_SECOND
from protocol.errors import ErrorCode
from protocol.messages import (
    AssignmentHeartbeat,
    LeaseAnswer,
    LeaseRequest,
    Offer,
    Release,
    Submission,
)
from shared.identity import Identity
from shared.sizing import step_flops
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, Refused


class Worker:
    """A registered worker; each of its devices asks under its number."""

    def __init__(self, api, make, client: CoordinatorClient) -> None:
        self.api, self.make, self.client = api, make, client

    @property
    def id(self) -> str:
        assert self.client.identity is not None
        return self.client.identity.peer_id

    async def ask(self, device_number: int = 0, **capability: Any) -> LeaseAnswer:
        request = LeaseRequest(
            request_id=secrets.token_hex(16),
            capability=self.make.capability(**capability),
            device_number=device_number,
        )
        return await self.client.lease(request)

    async def start(self, device_number: int = 0, **capability: Any) -> Offer:
        answer = await self.ask(device_number, **capability)
        assert answer.offer is not None, answer.reason
        await self.client.acknowledge(answer.offer.assignment, answer.offer.fencing)
        return answer.offer

    async def beat(self, offer: Offer, step: int) -> None:
        beat = AssignmentHeartbeat(
            fencing=offer.fencing, step=step, loss=3.0, tokens_per_second=1.0, checkpoint=None
        )
        await self.client.assignment_heartbeat(offer.assignment, beat)

    async def hand_in(self, offer: Offer, *, collected: bool = True) -> None:
        manifest = self.make.blob(f"{offer.spec.digest} manifest")
        submission = Submission(
            request_id=secrets.token_hex(16),
            fencing=offer.fencing,
            manifest=manifest,
            tokens_per_second=1.0,
            train_seconds=1.0,
        )
        await self.client.submit(offer.assignment, submission)
        if not collected:
            return
        with self.api.ledger.begin() as connection:
            (row,) = queries.announced_checkpoints(connection)
            manifest = self.make.manifest(offer.spec, self.id)
            queries.mark_durable(connection, row.checkpoint_id, manifest, self.api.clock())

    def accept(self, offer: Offer) -> None:
        with self.api.ledger.begin() as connection:
            queries.record_verification(
                connection, offer.assignment, offer.fencing, Accepted(), "", self.api.clock()
            )

    def leases(self) -> list[tuple[int, str]]:
        with self.api.ledger.read() as connection:
            held = queries.live_leases_of(connection, self.id)
            return [(one.device_number, one.assignment) for one in held]


@pytest.fixture
async def join(api, make, tmp_path):
    async def join(name: str) -> Worker:
        client = CoordinatorClient("http://coordinator", Identity.create(tmp_path / name / "key"))
        await client.http.aclose()
        client.http = api.http
        info = await client.run_info()
        await client.register(info, make.capability(), name=name, invite=None, maddrs=())
        return Worker(api, make, client)

    return join


def add_work(api, make, **facts: Any):
    spec = make.spec(**facts)
    with api.ledger.begin() as connection:
        shard = make.shard(spec.domain, "train").blob
        queries.add_assignment(connection, spec, shard=shard, schemes=("MHo-IHo",), now=api.clock())
    return spec


@pytest.fixture
async def proven(api, make, join) -> Worker:
    """A worker whose first work was accepted, and work for several devices."""
    add_work(api, make)
    worker = await join("anna")
    offer = await worker.start()
    await worker.hand_in(offer)
    worker.accept(offer)
    for rng_seed in range(1, 6):
        add_work(api, make, rng_seed=rng_seed)
    return worker


async def test_a_newcomer_s_devices_hold_one_lease_together(api, make, join):
    for rng_seed in range(5):
        add_work(api, make, rng_seed=rng_seed)
    anna, bert = await join("anna"), await join("bert")
    offer = await anna.start(1)
    for device_number in (0, 2):
        answer = await anna.ask(device_number)
        assert answer.offer is None
        assert f"another of your devices holds {offer.assignment}" in answer.reason
        assert "holds one lease at a time" in answer.reason
    assert anna.leases() == [(1, offer.assignment)]
    assert (await bert.ask(0)).offer is not None
    await anna.hand_in(offer)
    other = await anna.start(0)
    assert (await anna.ask(1)).offer is None, "handed in is not accepted"
    anna.accept(offer)
    third = (await anna.ask(1)).offer
    assert third is not None
    assert anna.leases() == [(0, other.assignment), (1, third.assignment)]


async def test_two_devices_that_ask_at_once_get_two_leases_and_an_offer_is_repeated(api, proven):
    first, second = await asyncio.gather(proven.ask(0), proven.ask(1))
    assert first.offer is not None
    assert second.offer is not None
    assert first.offer.assignment != second.offer.assignment
    again = (await proven.ask(1)).offer
    assert again is not None
    assert (again.assignment, again.fencing) == (second.offer.assignment, second.offer.fencing)
    await proven.client.acknowledge(again.assignment, again.fencing)
    with pytest.raises(Refused, match=f"you hold {again.assignment}") as refused:
        await proven.ask(1)
    assert refused.value.code is ErrorCode.WRONG_STATE


async def test_a_lease_that_ran_out_on_one_device_leaves_the_other_device_its_own(api, proven):
    quiet, loud = await proven.start(0), await proven.start(1)
    for step in range(1, 5):
        api.pass_time(10.0)
        await proven.beat(loud, step)
    assert proven.leases() == [(1, loud.assignment)]
    with pytest.raises(Refused) as refused:
        await proven.beat(quiet, 1)
    assert refused.value.code is ErrorCode.LEASE_LOST
    assert (await proven.ask(0)).offer is not None


async def test_a_release_frees_its_own_device_alone(api, proven):
    first, second = await proven.start(0), await proven.start(1)
    release = Release(fencing=first.fencing, reason="stopped", detail="", checkpoint=None)
    await proven.client.release(first.assignment, release)
    assert proven.leases() == [(1, second.assignment)]


async def test_each_lease_has_the_calls_of_a_worker(api, proven):
    """Four devices with checkpoints every few seconds: with the calls of one, leases would end."""
    leases = [await proven.start(number) for number in range(4)]
    for step in range(1, 13):
        for _ in range(8):
            for lease in leases:
                await proven.beat(lease, step)
        api.pass_time(10.0)

    async def call_too_often():
        for step in range(4 * BURST_CALLS + 1):
            await proven.beat(leases[0], step)

    with pytest.raises(CoordinatorBusy, match="too many calls"):
        await call_too_often()


async def test_a_device_has_the_time_for_its_first_step_that_it_needs_itself(api, proven):
    """It is slow, and by the speed of the worker's first device it would have stalled."""
    assert (await proven.ask(1)).offer is not None
    slow = await proven.start(1, flops_per_second=MIN_FLOPS_PER_SECOND)
    assert STALL_STEPS * step_flops(slow.spec) / MIN_FLOPS_PER_SECOND > 500.0
    beats = STALL_INTERVALS * FIRST_STEP_FACTOR + 10
    for _ in range(beats):
        api.pass_time(10.0)
        await proven.beat(slow, 0)
    assert proven.leases() == [(1, slow.assignment)]


async def test_no_device_backs_up_another_one_of_its_worker(api, make, join, proven):
    """The straggler's own worker has a device that is far faster, and is not asked to."""
    with api.ledger.begin() as connection:
        for row in queries.all_assignments(connection)[2:]:
            if row.state == "open":
                queries.cancel_assignment(connection, row, reason="", now=api.clock())
    slow = await proven.start(0, flops_per_second=2e6)
    for _ in range(8):
        api.pass_time(10.0)
        await proven.beat(slow, 1)
    answer = await proven.ask(1, flops_per_second=1e12)
    assert answer.offer is None, answer.reason
    bert = await join("bert")
    backup = (await bert.ask(0, flops_per_second=1e12)).offer
    assert backup is not None
    assert backup.spec == slow.spec
    assert backup.assignment != slow.assignment


async def test_a_device_waits_for_its_own_submissions_and_not_for_those_of_others(api, proven):
    for _ in range(2):
        await proven.hand_in(await proven.start(1), collected=False)
    assert "wait to be collected" in (await proven.ask(1)).reason
    assert (await proven.ask(0)).offer is not None


async def test_devices_are_matched_by_what_each_has(api, make, proven):
    small = await proven.ask(2, free_memory_bytes=1)
    assert small.offer is None
    assert "you have 0 MB" in small.reason
    assert (await proven.ask(1)).offer is not None
    with api.ledger.read() as connection:
        first, second, third = queries.these_workers(connection, [proven.id])
    assert [row.device_number for row in (first, second, third)] == [0, 1, 2]
    assert third.capability.free_memory_bytes == 1
    assert first.capability == make.capability()


async def test_views_and_the_account_know_of_all_leases(api, proven):
    first, second = await proven.start(0), await proven.start(1)
    (view,) = (await api.http.get("/v1/workers")).json()
    assert view["assignments"] == [first.assignment, second.assignment]
    assert view["assignment"] == first.assignment
    account = await proven.client.why(limit=5)
    assert account.holds == first.assignment
    assert account.blockers == (f"it holds {first.assignment} already",)
    release = Release(fencing=second.fencing, reason="stopped", detail="", checkpoint=None)
    await proven.client.release(second.assignment, release)
    account = await proven.client.why(limit=5)
    assert account.holds == first.assignment
    assert account.blockers == ()
