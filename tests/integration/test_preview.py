"""A look at the work: the real client, the real app, and a ledger in which nothing may change."""

import math
import secrets
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.routes.leasing import Burden, find_blocker
from coordinator.api.routes.preview import NOT_PLANNED_YET
from coordinator.footprint import estimate
from coordinator.ledger import queries
from coordinator.ledger.queries import RunRow
from coordinator.lifecycle import MAX_UNCOLLECTED
from coordinator.scoring.verification import Accepted
from protocol.messages import LeaseRequest, Submission
from protocol.previews import MAX_LACKS
from shared.identity import Identity
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, Refused


class Looker:
    """A registered worker that looks at work before it asks for any."""

    def __init__(self, api, client: CoordinatorClient, capability) -> None:
        self.api, self.client, self.capability = api, client, capability

    def request(self, *, device_number: int = 0, **changes) -> LeaseRequest:
        return LeaseRequest(
            request_id=secrets.token_hex(16),
            capability=self.capability.model_copy(update=changes),
            device_number=device_number,
        )

    async def look(self, **changes):
        return await self.client.preview(self.request(**changes))

    async def lease(self, **changes):
        return await self.client.lease(self.request(**changes))


@pytest.fixture
async def looker(api, make, tmp_path):
    lookers = []

    async def start(name: str, **changes) -> Looker:
        identity = Identity.create(tmp_path / name / "worker.key")
        client = CoordinatorClient("http://coordinator", identity)
        await client.http.aclose()
        client.http = api.http
        looker = Looker(api, client, make.capability(**changes))
        lookers.append(looker)
        info = await client.run_info()
        await client.register(info, looker.capability, name=name, invite=None, maddrs=())
        return looker

    return start


def add_work(api, make, **facts):
    spec = make.spec(**facts)
    with api.ledger.begin() as connection:
        shard = make.shard(spec.domain, "train").blob
        queries.add_assignment(connection, spec, shard=shard, schemes=("MHo-IHo",), now=api.clock())
    return spec


def written(api) -> tuple[int, list]:
    """How many entries there are, and where every assignment stands."""
    with api.ledger.read() as connection:
        rows = queries.all_assignments(connection)
        return queries.last_number(connection), [row.standing for row in rows]


async def test_memory_is_shown_as_workers_measured_it(api, make, looker):
    spec = add_work(api, make)
    anna = await looker("anna")
    shown = (await anna.look()).work.memory_bytes
    assert shown == estimate(spec, "cpu")
    offer = (await anna.lease()).offer
    await anna.client.acknowledge(offer.assignment, offer.fencing)
    submission = Submission(
        request_id=secrets.token_hex(16),
        fencing=offer.fencing,
        manifest=make.blob("manifest"),
        tokens_per_second=64.0,
        train_seconds=10.0,
        peak_memory_bytes=int(1.3 * shown) - 1,
    )
    await anna.client.submit(offer.assignment, submission)
    with api.ledger.begin() as connection:
        (row,) = queries.announced_checkpoints(connection)
        manifest = make.manifest(spec, anna.client.identity.peer_id)
        queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())
        fencing, at = offer.fencing, api.clock()
        queries.record_verification(connection, offer.assignment, fencing, Accepted(), "good", at)
    later = add_work(api, make, ffn_width=96)
    most = math.ceil(1.3 * estimate(later, "cpu"))
    assert (await anna.look()).work.memory_bytes == most
    (lack,) = (await anna.look(free_memory_bytes=most - 1)).lacks
    assert (lack.requirement, lack.needed) == ("memory", most)


async def test_what_is_shown_is_what_a_request_gets_then_and_looking_writes_nothing(
    api, make, looker
):
    add_work(api, make)
    anna = await looker("anna")
    before = written(api)
    seen = [await anna.look() for _ in range(3)]
    assert written(api) == before
    assert {one.prospect for one in seen} == {"now"}
    assert seen[0] == seen[1] == seen[2]
    offer = (await anna.lease()).offer
    work = seen[0].work
    assert (work.spec, work.shard, work.parent, work.resume) == (
        *(offer.spec, offer.shard),
        *(offer.parent, offer.resume),
    )
    assert (work.reason, work.checkpoint_seconds) == (offer.reason, offer.checkpoint_seconds)


async def test_a_look_leaves_what_the_scheduler_expects_of_others_as_it_was(api, make, looker):
    add_work(api, make)
    slow, fast = (
        await looker("slow", flops_per_second=1e9),
        await looker("fast", flops_per_second=9e9),
    )
    await fast.look()
    assert (await slow.lease()).offer is not None, "who only looks is not waited for"


async def test_a_held_lease_is_what_there_is(api, make, looker):
    spec = add_work(api, make)
    anna = await looker("anna")
    assert (await anna.lease()).offer is not None
    seen = await anna.look()
    assert (seen.prospect, seen.work.spec, seen.reason) == ("now", spec, "you hold it already")


async def test_a_newcomer_s_other_device_is_promised_nothing_that_it_would_not_get(
    api, make, looker
):
    for rng_seed in range(3):
        add_work(api, make, rng_seed=rng_seed)
    anna = await looker("anna")
    offer = (await anna.lease()).offer
    seen = await anna.look(device_number=1)
    answer = await anna.lease(device_number=1)
    assert answer.offer is None
    assert (seen.work, seen.reason) == (None, answer.reason)
    assert f"another of your devices holds {offer.assignment}" in seen.reason
    assert seen.prospect == "later"


RUN = RunRow(**dict.fromkeys((one.name for one in fields(RunRow)), None))  # type: ignore[arg-type]
BURDENS = st.builds(
    Burden,
    others=st.lists(st.sampled_from(["a1", "a2"]), max_size=2).map(tuple),
    uncollected=st.integers(0, 2 * MAX_UNCOLLECTED),
    is_proven=st.booleans(),
)


@given(burden=BURDENS, paused=st.booleans(), finished=st.booleans(), has_own_work=st.booleans())
def test_a_device_gets_work_where_nothing_of_the_run_or_of_its_worker_is_against_it(
    burden, paused, finished, has_own_work
):
    run = replace(RUN, phase="finished" if finished else "training", paused=paused)
    blocker = find_blocker(run, burden, has_own_work=has_own_work)
    assert (blocker == "") == (
        not paused
        and (has_own_work or not finished)
        and (burden.is_proven or not burden.others)
        and burden.uncollected <= MAX_UNCOLLECTED
    )


async def test_work_that_others_do_is_a_reason_to_come_back(api, make, looker):
    add_work(api, make)
    anna, bert = await looker("anna"), await looker("bert")
    await anna.lease()
    seen = await bert.look()
    assert (seen.prospect, seen.work, seen.unfinished) == ("later", None, 1)
    assert seen.lacks == ()


@pytest.mark.parametrize(
    ("lacking", "unit"), [({"free_memory_bytes": 1000}, "memory"), ({"free_disk_bytes": 7}, "disk")]
)
async def test_a_machine_that_nothing_fits_is_told_what_it_lacks_and_how_much(
    api, make, looker, lacking, unit
):
    for steps in range(10, 18):
        add_work(api, make, num_steps=steps)
    anna = await looker("anna", **lacking)
    seen = await anna.look()
    assert (seen.prospect, seen.work, seen.unfinished) == ("never", None, 8)
    (lack,) = seen.lacks
    assert (lack.requirement, lack.unit, lack.held) == (unit, "bytes", next(iter(lacking.values())))
    assert lack.needed > lack.held
    assert f"free {unit}, you have" in lack.words


async def test_lacks_are_few_and_the_smallest_come_first(api, make, looker):
    for width in range(64, 64 + 256 * (MAX_LACKS + 3), 256):
        add_work(api, make, ffn_width=width)
    anna = await looker("anna", free_disk_bytes=7)
    needed = [lack.needed for lack in (await anna.look()).lacks]
    assert len(needed) == MAX_LACKS
    assert needed == sorted(needed)


async def test_before_the_plan_is_made_nothing_is_ruled_out(api, make, looker):
    with api.ledger.begin() as connection:
        queries.set_phase(connection, "seeding", "", api.clock())
    add_work(api, make)
    anna = await looker("anna", free_memory_bytes=1000)
    seen = await anna.look()
    assert (seen.prospect, [lack.requirement for lack in seen.lacks]) == ("later", ["memory"])
    assert seen.reason == NOT_PLANNED_YET


@pytest.mark.parametrize("ending", ["paused", "finished", "nothing left"])
async def test_a_run_that_has_no_work_says_why(api, make, looker, ending):
    anna = await looker("anna")
    if ending != "nothing left":
        add_work(api, make)
    with api.ledger.begin() as connection:
        if ending == "finished":
            queries.set_phase(connection, "finished", "", api.clock())
        if ending == "paused":
            queries.set_paused(connection, True, reason="", now=api.clock())
    seen = await anna.look()
    expected = {
        "paused": ("later", "the operator paused the run"),
        "finished": ("never", "the run is finished"),
        "nothing left": ("later", "no assignment is open now"),
    }
    assert (seen.prospect, seen.reason) == expected[ending]
    assert seen.work is None


async def test_looks_count_against_the_rate_like_any_call(api, looker):
    anna = await looker("anna")

    async def look_again_and_again() -> None:
        # One after another: so many at once could be turned away for that alone.
        for _ in range(200):
            await anna.look()

    with pytest.raises(CoordinatorBusy, match="too many calls"):
        await look_again_and_again()


async def test_nobody_looks_without_a_token(api, make):
    client = CoordinatorClient("http://coordinator")
    await client.http.aclose()
    client.http = api.http
    request = LeaseRequest(request_id=secrets.token_hex(16), capability=make.capability())
    with pytest.raises(Refused):
        await client.preview(request)
