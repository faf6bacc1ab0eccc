"""The worker's real client, lease and agent against the real app, over a line that may be bad."""

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator import lifecycle
from coordinator.api.app import create_app
from coordinator.ledger import Ledger, queries
from coordinator.ledger.backup import backup
from coordinator.scoring.verification import Accepted
from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import LeaseRequest, Offer, Submission
from protocol.receipts import SignedReceipt
from shared.clock import now
from worker.agent import Agent
from worker.asking import acknowledge
from worker.capability import Probed
from worker.client import CoordinatorClient, new_request_id
from worker.deliveries import Deliveries
from worker.device import Device
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, KeyInUse, Refused
from worker.folder import WorkerFolder
from worker.lease import Lease, LeaseGone
from worker.manners.watch import Manners
from worker.membership import Membership
from worker.rivals import MAX_LOST_TOKENS
from worker.settings import JoinSettings
from worker.shelf import Named, Shelf
from worker.status import Board
from worker.tasks import background
from worker.work import Work

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


@pytest.fixture
async def workers(
    api: Any, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], Worker]]:
    monkeypatch.setattr("worker.capability.probe", lambda **_: Probed(make.capability()))
    started: list[Worker] = []

    def start(name: str) -> Worker:
        started.append(Worker(api, tmp_path / name, monkeypatch))
        return started[-1]

    yield start
    for worker in started:
        for member in worker.members:
            await member.stop()
        worker.folder.close()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While set, as many requests wait at the coordinator as may."""
    event = asyncio.Event()
    for module in ("admission", "routes.leasing"):
        monkeypatch.setattr(f"coordinator.api.{module}.is_full", lambda _: event.is_set())
    return event


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


async def test_both_heartbeats_bring_receipts_and_each_comes_once(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make, count=3)
    anna = workers("anna")
    member = await anna.join(make.capability())
    first = await do_work(api, make, member)
    await member.beat()
    second = await do_work(api, make, member)
    async with background(lease_of(member, await start(member, make)).beats()):
        await until("the lease's heartbeat", lambda: anna.line.paths[-1].endswith("/heartbeat"))
    folder = anna.folder.root / "receipts" / api.identity.peer_id
    kept = [SignedReceipt.model_validate_json(path.read_bytes()) for path in folder.iterdir()]
    done = sorted((one.receipt for one in kept), key=lambda receipt: receipt.entry)
    assert [receipt.assignment for receipt in done] == [first.assignment, second.assignment]
    with api.ledger.read() as connection:
        entries = {entry.number: entry for entry in queries.read_entries(connection)}
    assert all(entries[receipt.entry].digest == receipt.entry_digest for receipt in done)
    lines = [line for line in anna.said.lines if line.startswith("receipt: entry ")]
    assert len(lines) == 2
    answer = await member.beat()
    assert answer.receipts == ()
    again = await anna.join(make.capability())
    assert len((await again.beat()).receipts) == 1, "to see that the ledger still has it"
    assert (await again.beat()).receipts == ()
    assert sum("receipt: entry" in line for line in anna.said.lines) == 2


async def test_receipts_of_before_and_after_a_restored_backup_are_kept(
    api: Any, make: Any, workers: Any, tmp_path: Path
) -> None:
    add_work(api, make, count=4)
    anna = workers("anna")
    member = await anna.join(make.capability())
    await do_work(api, make, member)
    backup(api.ledger, tmp_path / "copy.sqlite", lambda _: None)
    await do_work(api, make, member)
    await member.beat()
    assert len(list(member.receipts.folder.iterdir())) == 2

    restored = Ledger(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    try:
        api.ledger, api.clock.seconds = restored, api.clock.seconds + 100.0
        app = create_app(
            ledger=restored, identity=api.identity, settings=api.settings, now=api.clock
        )
        async with app.state.context.writer:
            anna.line.app = app
            member = await anna.join(make.capability())
            await member.beat()
            assert "does not hold entry" in anna.said
            await do_work(api, make, member)
            await member.beat()
            await member.beat()
            with restored.read() as connection:
                *_, newest = queries.receipts_of(connection, anna.peer_id)
            assert member.receipts.after == newest.entry
    finally:
        restored.close()
    assert len(list(member.receipts.folder.iterdir())) == 3


async def test_a_worker_gets_the_work_whose_shard_or_parent_it_holds(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make, count=2)
    anna = workers("anna")
    member = await anna.join(make.capability())
    seeds = [(await do_work(api, make, member)).spec for _ in range(2)]
    weights = [make.manifest(spec, anna.peer_id).blob("model.safetensors").digest for spec in seeds]
    for domain in ("python", "manuals"):
        for spec in seeds:
            add_work(api, make, count=2, domain=domain, parent=spec.digest)
    for name, digest, spec in zip(("bert", "cleo"), weights, seeds, strict=True):
        offer = await ask(await workers(name).join(make.capability()), make, digest)
        assert offer.spec.parent == spec.digest
        assert offer.parent is not None
        assert offer.parent.manifest.blob("model.safetensors").digest == digest
    for domain in ("python", "manuals"):
        shard = make.shard(domain, "train").blob.digest
        offer = await ask(await workers(domain).join(make.capability()), make, shard)
        assert offer.spec.domain == domain


async def test_a_request_for_work_names_the_inputs_that_lie_here_and_nothing_else(
    make: Any, workers: Any
) -> None:
    anna = workers("anna")
    member = await anna.join(make.capability())
    blobs = [anna.folder.blobs.add_bytes(bytes([number])) for number in range(70)]
    anna.folder.blobs.add_bytes(b"a checkpoint of its own")
    for ref in blobs:
        await member.holdings.fetch_input(ref, public=False, needed=())
    await member.holdings.fetch_input(blobs[0], public=False, needed=())
    member.holdings.drop([blobs[68].digest])
    newest_first = [blobs[0], *blobs[69:0:-1]]
    assert member.cached() == tuple(ref.digest for ref in newest_first[:64])


@FAST
async def test_a_busy_coordinator_is_named_busy_and_asked_again_until_it_has_time(
    api: Any, make: Any, workers: Any, busy: asyncio.Event
) -> None:
    busy.set()
    anna = workers("anna")
    agent = anna.agent()
    running = asyncio.create_task(agent.run())
    await until("it heard so", lambda: "the coordinator is busy, next try in" in anna.said)
    assert "joined" not in anna.said
    busy.clear()
    await until("joined", lambda: "joined run test" in anna.said)
    await until("no work", lambda: "waiting: " in anna.said)
    busy.set()
    await until("busy", lambda: "the coordinator is busy, it is asked again" in anna.said)
    before = len(anna.line.paths)
    await until(
        "it beats meanwhile",
        lambda: anna.line.paths[before:].count("/v1/workers/heartbeat") > 2,
    )
    agent.stop()
    assert await asyncio.wait_for(running, 20) == 0


@FAST
async def test_neither_a_rate_limit_nor_a_coordinator_in_trouble_ends_a_lease(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    await call_too_often(member)
    lease = lease_of(member, offer)
    answers: list[int] = []

    def note(path: str, answer: httpx.Response) -> httpx.Response:
        answers.append(answer.status_code)
        if len(answers) in (3, 4):
            return httpx.Response(502, text="<p>bad gateway</p>")
        if len(answers) == 5:
            raise httpx.ReadTimeout("silent")
        if len(answers) == 6:
            return httpx.Response(200, text="<p>welcome</p>")
        return answer

    anna.line.fault = note
    async with background(lease.beats()):
        await until("refused", lambda: answers == [429, 429])
        api.clock.advance(0.4)
        lease.note_progress({"step": 5, "loss": 1.0, "tokens_per_second": 1.0})
        await until("many troubles later", lambda: len(answers) > 7)
        assert not lease.gone.is_set()
        lease.check()
    with api.ledger.read() as connection:
        attempt = queries.live_lease_of(connection, anna.peer_id)
    assert attempt is not None
    assert attempt.step == 5


@FAST
async def test_a_worker_that_called_too_often_and_starts_again_waits_and_says_so(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    await call_too_often(await anna.join(make.capability()))
    joining = asyncio.create_task(anna.join(make.capability()))
    await until("it heard so", lambda: "the coordinator is busy, next try in" in anna.said)
    assert not joining.done()
    api.clock.advance(1.0)
    await (await asyncio.wait_for(joining, 20)).beat()


async def test_a_lost_answer_to_a_submission_changes_nothing_and_a_new_life_hands_in_again(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    lost: list[str] = []

    def lose_first(path: str, answer: httpx.Response) -> httpx.Response:
        if path.endswith("/submit") and not lost:
            lost.append(path)
            raise httpx.ReadTimeout("lost")
        return answer

    anna.line.fault = lose_first
    never = asyncio.Event()
    assert await lease_of(member, offer).submit(submission(make, offer), never)
    assert kinds(api).count("submit") == 1
    anew = lease_of(await anna.join(make.capability()), offer)
    async with background(anew.beats()):
        await until("it was told", lambda: anna.line.paths[-1].endswith("/heartbeat"))
        anew.beat_soon()
        await until("still here", lambda: anna.line.paths[-1] == "/v1/workers/heartbeat")
        assert not anew.gone.is_set(), "it may have to hand in the same expert again"
    assert await lease_of(member, offer).submit(submission(make, offer), never)
    assert kinds(api).count("submit") == 1
    with pytest.raises(LeaseGone, match="is submitted already"):
        await lease_of(member, offer).submit(submission(make, offer, "another"), never)


async def test_who_was_overtaken_by_a_backup_learns_why(api: Any, make: Any, workers: Any) -> None:
    add_work(api, make)
    anna, bert = workers("anna"), workers("bert")
    slow, fast = await anna.join(make.capability()), await bert.join(make.capability())
    offer = await start(slow, make)
    terms = {"worker": bert.peer_id, "free_memory_bytes": 1, "reason": "as a backup"}
    with api.ledger.begin() as connection:
        original = queries.get_assignment(connection, offer.assignment)
        twin = queries.add_backup(connection, original, now=api.clock())
        offered = queries.offer_assignment(
            connection,
            queries.OfferTerms(assignment=twin, **terms),
            now=api.clock(),
            heartbeat_seconds=10.0,
        )
    second = offer.model_copy(update={"assignment": twin, "fencing": offered.standing.fencing})
    await fast.client.acknowledge(twin, second.fencing)
    await fast.client.submit(twin, submission(make, second))
    accept(api, make, second, bert.peer_id)
    lease = lease_of(slow, offer)
    await asyncio.wait_for(lease.beats(), 10)
    with pytest.raises(LeaseGone, match=f"cancelled: {twin} of the same spec was accepted") as gone:
        lease.check()
    assert not gone.value.stalled
    assert await lease.release("stopped", "") == "gone"
    with pytest.raises(LeaseGone, match="accepted first"):
        await lease.submit(submission(make, offer, "late"), asyncio.Event())


class RealClock:
    """The coordinator's clock runs."""

    def __call__(self) -> float:
        return now()


class TestStall:
    """With a clock that runs."""

    @pytest.fixture
    def clock(self) -> RealClock:
        return RealClock()

    @pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 1.0}], indirect=True)
    async def test_a_trainer_that_stands_still_loses_its_lease_and_the_volunteer_is_told_why(
        self, api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALL_INTERVALS", 1.5)
        monkeypatch.setattr(lifecycle, "STALL_STEPS", 0)
        add_work(api, make)
        anna = workers("anna")
        member = await anna.join(make.capability())
        lease = lease_of(member, await start(member, make))
        lease.note_progress({"step": 1, "loss": 1.0, "tokens_per_second": 1.0})
        await asyncio.wait_for(lease.beats(), 20)
        with pytest.raises(LeaseGone, match="no further than step 1 in 0:0") as gone:
            lease.check()
        assert gone.value.stalled

    @pytest.mark.parametrize("api_settings", [{"heartbeat_seconds": 1.0}], indirect=True)
    async def test_a_lease_that_runs_out_over_a_pause_is_known_early_enough_to_give_it_back(
        self, api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALL_INTERVALS", 6)
        monkeypatch.setattr(lifecycle, "STALL_STEPS", 0)
        add_work(api, make)
        anna = workers("anna")
        member = await anna.join(make.capability())
        offer = await start(member, make)
        lease = lease_of(member, offer)
        async with background(lease.beats()):
            for step in range(1, 4):
                lease.note_progress({"step": step, "loss": 1.0, "tokens_per_second": 1.0})
                seen = len(anna.line.paths)
                await until("a beat", lambda seen=seen: len(anna.line.paths) > seen)
                assert not lease.is_running_out()
            await until("it runs out", lease.is_running_out)
            assert not lease.gone.is_set()
            assert await lease.release("stopped", "paused") == "released"
        assert api_state(api, offer.assignment) == "open"


def api_state(api: Any, assignment: str) -> str:
    with api.ledger.read() as connection:
        return queries.get_assignment(connection, assignment).state.value


@FAST
async def test_a_banned_worker_ends_with_words_and_4_at_work_and_idle(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    lease = lease_of(member, await start(member, make))
    idle = workers("idle")
    running = asyncio.create_task(idle.agent().run())
    await until("joined", lambda: "waiting: " in idle.said)
    with api.ledger.begin() as connection:
        for worker in (anna.peer_id, idle.peer_id):
            queries.mark_worker(connection, worker, "ban", reason="", now=api.clock())
            queries.expire_leases_of(connection, worker, now=api.clock())
    await asyncio.wait_for(lease.beats(), 10)
    with pytest.raises(Refused, match="banned by the operator") as refused:
        lease.check()
    assert refused.value.exit_code == 4
    with pytest.raises(Refused, match="banned by the operator"):
        await lease.release("stopped", "")
    with pytest.raises(Refused, match="banned by the operator"):
        await asyncio.wait_for(running, 10)
    with pytest.raises(Refused, match="banned"):
        await anna.join(make.capability())


@FAST
async def test_a_stay_is_told_to_the_coordinator_and_ends_in_good_order(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    running = asyncio.create_task(anna.agent(stay_seconds=3.0).run())
    await until("waiting", lambda: "waiting: " in anna.said)
    with api.ledger.read() as connection:
        known = queries.find_worker(connection, anna.peer_id)
    assert known is not None
    left = known.capability.available_seconds
    assert left is not None
    assert 0.0 <= left < 3.0
    assert await asyncio.wait_for(running, 20) == 0
    assert anna.said.lines[0].startswith("staying until ")
    assert "the time is over" in anna.said


async def test_an_acknowledgement_is_repeated_while_the_offer_lasts(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await ask(member, make)
    body = ErrorBody(code=ErrorCode.RATE_LIMITED, message="slow", retry_after_seconds=0.1)
    failed: list[str] = []

    def fail_first(path: str, answer: httpx.Response) -> httpx.Response:
        if path.endswith("/acknowledge") and not failed:
            failed.append(path)
            return httpx.Response(429, content=body.model_dump_json())
        return answer

    anna.line.fault = fail_first
    assert await acknowledge(member, offer, leaving=asyncio.Event())
    assert kinds(api).count("acknowledge") == 1


def cancel(api: Any, assignment: str) -> None:
    with api.ledger.begin() as connection:
        row = queries.get_assignment(connection, assignment)
        queries.cancel_assignment(connection, row, reason="not needed", now=api.clock())


@FAST
async def test_a_cancelled_assignment_ends_even_its_downloads_and_leaves_nothing(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    work = Work(member, device_of(member, anna.said), offer, Manners())
    work.folder.mkdir(parents=True)
    anna.line.silent = "/v1/blobs/"
    running = asyncio.create_task(work.run(asyncio.Event()))
    await until("it fetches", lambda: any("/v1/blobs/" in path for path in anna.line.paths))
    cancel(api, offer.assignment)
    assert await asyncio.wait_for(running, 10) == "lost"
    assert f"lease {offer.assignment} is gone" in anna.said
    assert "cancelled: not needed" in anna.said
    assert not work.folder.exists()


@FAST
async def test_a_ban_ends_the_work_at_once_and_deletes_nothing_in_case_it_is_lifted(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    work = Work(member, device_of(member, anna.said), offer, Manners())
    work.folder.mkdir(parents=True)
    anna.line.silent = "/v1/blobs/"
    running = asyncio.create_task(work.run(asyncio.Event()))
    await until("it fetches", lambda: any("/v1/blobs/" in path for path in anna.line.paths))
    with api.ledger.begin() as connection:
        queries.mark_worker(connection, anna.peer_id, "ban", reason="", now=api.clock())
    with pytest.raises(Refused, match="banned"):
        await asyncio.wait_for(running, 10)
    assert work.folder.exists()


@FAST
async def test_what_was_handed_in_is_kept_until_it_is_held_or_unwanted(
    api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.deliveries.REPEAT_INTERVALS", 0)
    add_work(api, make, count=2)
    anna = workers("anna")
    member = await anna.join(make.capability())
    deliveries = Deliveries(member)
    handed_in = []
    for number in range(2):
        offer = await start(member, make)
        ref = anna.folder.blobs.add_bytes(bytes([number]))
        named = Named(
            ref, make.manifest(offer.spec, anna.peer_id).model_copy(update={"files": ()}), 0.0
        )
        sent = submission(make, offer).model_copy(update={"manifest": ref})
        await member.client.submit(offer.assignment, sent)
        deliveries.add(offer.assignment, named, sent)
        handed_in.append((offer, ref))
    (held, held_ref), (unwanted, unwanted_ref) = handed_in
    await deliveries.settle()
    assert kinds(api).count("submit") == 2, "a repetition changes nothing"
    assert anna.folder.blobs.has(held_ref.digest)
    with api.ledger.begin() as connection:
        row = queries.announced_checkpoints(connection)[0]
        manifest = make.manifest(held.spec, anna.peer_id)
        queries.mark_durable(connection, row.checkpoint_id, manifest, api.clock())
    await member.beat()
    again = Deliveries(member)
    again.take_up()
    await again.settle()
    assert not anna.folder.blobs.has(held_ref.digest)
    assert anna.folder.blobs.has(unwanted_ref.digest)
    cancel(api, unwanted.assignment)
    await again.settle()
    assert not anna.folder.blobs.has(unwanted_ref.digest)
    assert f"handed in for {unwanted.assignment} is not wanted any more" in anna.said
    assert not again
    assert anna.folder.remembered_deliveries() == {}


async def test_who_leaves_with_its_work_done_waits_for_the_receipt_but_not_for_ever(
    api: Any, make: Any, workers: Any
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    deliveries = Deliveries(member)
    await deliveries.await_receipts(0.0)
    assert "receipt" not in anna.said
    offer = await start(member, make)
    ref = anna.folder.blobs.add_bytes(b"expert")
    sent = submission(make, offer)
    await member.client.submit(offer.assignment, sent)
    deliveries.add(offer.assignment, Named(ref, make.manifest(offer.spec, anna.peer_id), 0.0), sent)
    await deliveries.await_receipts(0.0)
    assert "the receipt for the work handed in last comes with the next join" in anna.said
    waiting = asyncio.create_task(deliveries.await_receipts(60.0))
    await until("it asks", lambda: anna.line.paths[-1].endswith("/heartbeat"))
    assert not waiting.done()
    accept(api, make, offer, anna.peer_id)
    await asyncio.wait_for(waiting, 60)
    assert member.receipts.holds(offer.assignment)
    assert sum("comes with the next join" in line for line in anna.said.lines) == 1


@FAST
async def test_a_fetch_waits_for_a_role_that_restarts_and_gives_up_in_the_end(
    api: Any, make: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_work(api, make)
    anna = workers("anna")
    member = await anna.join(make.capability())
    offer = await start(member, make)
    tries: list[str] = []

    def fail(path: str, answer: httpx.Response) -> httpx.Response:
        if "/v1/blobs/" not in path:
            return answer
        tries.append(path)
        return httpx.Response(503, text="<p>starting</p>")

    anna.line.fault = fail
    monkeypatch.setattr("worker.transfers.PATIENCE_SECONDS", 3.0)
    with pytest.raises(CoordinatorUnreachable, match="no route works"):
        await member.holdings.fetch_input(offer.shard, public=True, needed=())
    assert len(tries) > 1
    assert member.cached() == ()
    anna.line.fault = lambda _path, answer: answer
    before = len(anna.line.paths)
    with pytest.raises(CoordinatorUnreachable, match="none that you may read"):
        await member.holdings.fetch_input(make.blob("of somebody else"), public=True, needed=())
    assert len(anna.line.paths) == before + 1, "a typed refusal is final"


async def test_of_two_workers_with_one_key_one_ends_with_words_and_the_other_goes_on(
    api: Any, make: Any, workers: Any, tmp_path: Path
) -> None:
    anna = workers("anna")
    first = await anna.join(make.capability())
    (tmp_path / "copy").mkdir()
    shutil.copy(anna.folder.root / "worker.key", tmp_path / "copy" / "worker.key")
    copy = workers("copy")
    assert copy.peer_id == anna.peer_id
    second = await copy.join(make.capability())
    ended: dict[Membership, KeyInUse] = {}
    for _ in range(10):
        for member in {first, second} - ended.keys():
            try:
                await member.beat()
            except KeyInUse as error:
                ended[member] = error
    [(gone, error)] = ended.items()
    assert error.exit_code == 4
    assert str(gone.folder.root) in str(error)
    assert "delete worker.key" in str(error)
    (left,) = {first, second} - ended.keys()
    await left.beat()


async def test_many_calls_that_lose_one_token_at_once_are_no_sign_of_another_worker(
    api: Any, make: Any, workers: Any
) -> None:
    anna = workers("anna")
    member = await anna.join(make.capability())
    await anna.join(make.capability())
    beats = [member.beat() for _ in range(MAX_LOST_TOKENS + 1)]
    await asyncio.gather(*beats)
