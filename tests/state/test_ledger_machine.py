"""Any history of workers, roles, operator and clock, with deaths between any two statements.

The api's real handlers, writer, scheduler and ledger on SQLite. After every step the file alone is
asked whether what was promised still holds.
"""

import contextlib
import copy
import logging
import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from killable import DeadlyFuse, Fuse, KillableApi, Killed
from sqlalchemy import Connection, select

from coordinator.api.app import MAX_TICK_SECONDS, ApiSettings
from coordinator.api.errors import ApiError
from coordinator.api.fleet import Fleet
from coordinator.api.routes import admin, leasing, workers
from coordinator.api.routes import assignments as held
from coordinator.api.routes.context import Caller
from coordinator.ledger import Ledger, queries, tables
from coordinator.ledger.entries import FIRST_PREVIOUS, write_row
from coordinator.ledger.rebuild import _compare, _empty_database
from coordinator.ledger.requests import KEEP_SECONDS
from coordinator.lifecycle import (
    COLLECT_INTERVALS,
    LEASE_INTERVALS,
    MAX_BACKOFF_SECONDS,
    MIN_COLLECT_SECONDS,
    OFFER_INTERVALS,
)
from coordinator.scoring.verification import Accepted, Inconclusive, Rejected
from protocol import PROTOCOL_VERSION
from protocol.admin import Order
from protocol.assignments import LIVE, AssignmentState
from protocol.digests import digest_value
from protocol.errors import ErrorCode
from protocol.messages import (
    Acknowledge,
    AssignmentHeartbeat,
    LeaseAnswer,
    LeaseRequest,
    Offer,
    RegisterAnswer,
    RegisterRequest,
    RegistrationStatement,
    Release,
    Submission,
    WorkerHeartbeat,
)
from protocol.specs import ExpertSpec
from shared.identity import Identity
from shared.sizing import step_flops

HEARTBEAT = 50.0
NUM_WORKERS = 3
NUM_STEPS = 20
START = 1_700_000_000.0
DECISIONS = (Accepted(), Rejected("worse"), Inconclusive("not told apart"))
REASONS = ("stopped", "out_of_memory", "trainer_failed", "diverged", "disk_full", "unavailable")
BOUNDS = {
    AssignmentState.OFFERED: OFFER_INTERVALS * HEARTBEAT,
    AssignmentState.RUNNING: LEASE_INTERVALS * HEARTBEAT,
    AssignmentState.SUBMITTED: max(COLLECT_INTERVALS * HEARTBEAT, MIN_COLLECT_SECONDS),
}


COORDINATOR, *KEYS = (Identity(Path("nowhere"), bytes([number] * 32)) for number in range(4))


@pytest.fixture(scope="module")
def begun(make, tmp_path_factory) -> Path:
    """A ledger with a run, a seed, an expert that waits for it, and another seed."""
    path = tmp_path_factory.mktemp("begun") / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.create()
    seed = make.spec()
    with ledger.begin() as connection:
        queries.create_run(connection, run="test", coordinator=COORDINATOR.peer_id, now=START)
        queries.add_shard(connection, make.shard("python", "train"), now=START)
        shard = make.shard("python", "train").blob
        for spec in (seed, make.spec(parent=seed.digest), make.spec(rng_seed=1)):
            queries.add_assignment(connection, spec, shard=shard, schemes=("a",), now=START)
        queries.set_phase(connection, "training", "", START)
    ledger.close()
    return path


class Volunteer:
    """What a worker knows. It sends what it likes, when it likes."""

    def __init__(self, identity: Identity, capability: Any) -> None:
        self.identity = identity
        self.worker = identity.peer_id
        self.capability = capability
        self.token = ""
        self.offers: list[Offer] = []


class AnyHistory(RuleBasedStateMachine):
    """The swarm, as the coordinator sees it."""

    make: Any
    begun: Path
    place: str | None = None
    """The ledger to go on with; None: a copy of the one that has begun."""
    fuse: Fuse | None = None

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "ledger.sqlite"
        shutil.copyfile(self.begun, path)
        self.url = self.place or f"sqlite:///{path}"
        self.numbers = count(1)
        self.settings = ApiSettings(
            run="test",
            heartbeat_seconds=HEARTBEAT,
            checkpoint_seconds=5.0,
            enrolment="open",
            trust="all",
            url_secret=b"0123456789abcdef",
            token_key=b"fedcba9876543210",
            admin_token="the operator's token",
            max_attempts=2,
        )
        speeds = (1e9, 1e7, 1e6)
        self.volunteers = [
            Volunteer(key, self.make.capability(flops_per_second=speed))
            for key, speed in zip(KEYS, speeds, strict=True)
        ]
        self.sent: list[Callable[[], Any]] = []
        self.answers: dict[tuple[str, str], tuple[float, LeaseAnswer]] = {}
        self.durable: dict[int, str] = {}
        self.late: set[tuple[str, int]] = set()
        self.fencing: dict[str, int] = {}
        self.receipts: set[tuple[Any, ...]] = set()
        self.deaths = 0
        self.rebuilt = contextlib.ExitStack()
        self.shadow = self.rebuilt.enter_context(_empty_database())
        self.replayed, self.head = 0, FIRST_PREVIOUS
        self.api = self.new_api()
        self.reader = Ledger(self.url)

    def new_api(self) -> KillableApi:
        return KillableApi(
            self.url,
            identity=COORDINATOR,
            settings=self.settings,
            now=self.clock,
            fuse=self.fuse,
        )

    def new_id(self) -> str:
        return f"{next(self.numbers):032x}"

    def clock(self) -> float:
        """No two looks at it show the same time."""
        self.now += 0.001
        return self.now

    def teardown(self) -> None:
        self.api.end()
        with self.reader.read() as connection:
            verdict = queries.verify_ledger(connection)
        self.reader.close()
        self.rebuilt.close()
        self.folder.cleanup()
        assert verdict.holds, verdict

    def die(self) -> None:
        """The process is gone with what it had not committed; another one takes its place."""
        self.deaths += 1
        self.api.end()
        self.api = self.new_api()

    def ask(self, *sends: Callable[[], Any]) -> list[Any]:
        """Answers to messages that arrive together; None for those that died with the api."""
        try:
            answers = self.api.call(*(send() for send in sends))
        except Killed:
            self.die()
            return [None for _ in sends]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ApiError):
                raise answer
        return answers

    def send(self, send: Callable[[], Any]) -> Any:
        """One message, which the network may deliver again later."""
        self.sent.append(send)
        (answer,) = self.ask(send)
        return answer

    def act(self, work: Callable[[Connection], Any]) -> Any:
        """Another role's transaction; None where it died with it."""
        try:
            return self.api.write(work)
        except Killed:
            self.die()
            return None

    def caller(self, one: Volunteer) -> Caller:
        return Caller(self.api.context, f"Bearer {one.token}")

    @initialize()
    def everybody_joins(self) -> None:
        for number in range(NUM_WORKERS):
            self.register(number)

    @rule(number=st.integers(0, NUM_WORKERS - 1))
    def register(self, number: int) -> None:
        one = self.volunteers[number]
        (challenge,) = self.ask(lambda: workers.challenge(self.api.context))
        if challenge is None:
            return
        statement = RegistrationStatement(
            purpose="hdee-register-v1",
            coordinator=COORDINATOR.peer_id,
            run="test",
            worker=one.worker,
            nonce=challenge.nonce,
            capability=digest_value(one.capability),
            protocol_version=PROTOCOL_VERSION,
        )
        request = RegisterRequest(
            worker=one.worker,
            nonce=challenge.nonce,
            capability=one.capability,
            protocol_version=PROTOCOL_VERSION,
            software_version="0",
            maddrs=(),
            signature=one.identity.sign(statement.signed_bytes()),
        )
        answer = self.send(lambda: workers.register(self.api.context, request))
        if isinstance(answer, RegisterAnswer):
            one.token = answer.token

    @rule(number=st.integers(0, NUM_WORKERS - 1), device=st.sampled_from([0, 0, 1]))
    def ask_for_work(self, number: int, device: int = 0) -> None:
        one = self.volunteers[number]
        request = LeaseRequest(
            request_id=self.new_id(), capability=one.capability, device_number=device
        )
        self.took(one, self.send(self.leasing(one, request)))

    def leasing(self, one: Volunteer, request: LeaseRequest) -> Callable[[], Any]:
        async def lease() -> Any:
            answer = await leasing.lease(self.api.context, self.caller(one), request)
            key = (one.worker, request.request_id)
            at, before = self.answers.setdefault(key, (self.now, answer))
            assert before == answer or self.now >= at + KEEP_SECONDS
            return answer

        return lease

    @rule()
    def everybody_asks_at_once(self) -> None:
        sends = [
            self.leasing(one, LeaseRequest(request_id=self.new_id(), capability=one.capability))
            for one in self.volunteers
        ]
        for one, answer in zip(self.volunteers, self.ask(*sends), strict=True):
            self.took(one, answer)

    def took(self, one: Volunteer, answer: Any) -> None:
        if isinstance(answer, LeaseAnswer) and answer.offer is not None:
            one.offers.append(answer.offer)

    def some_offer(self, number: int, back: int) -> tuple[Volunteer, Offer] | None:
        one = self.volunteers[number]
        return (one, one.offers[-1 - back]) if back < len(one.offers) else None

    @rule(number=st.integers(0, NUM_WORKERS - 1), back=st.sampled_from([0, 0, 0, 1, 2]))
    def acknowledge(self, number: int, back: int) -> None:
        found = self.some_offer(number, back)
        if found is not None:
            one, offer = found
            request = Acknowledge(fencing=offer.fencing)
            self.send(lambda: held.acknowledge(self.caller(one), offer.assignment, request))

    @rule(
        number=st.integers(0, NUM_WORKERS - 1),
        back=st.sampled_from([0, 0, 0, 1]),
        step=st.integers(0, NUM_STEPS + 1),
        announces=st.booleans(),
        first_step=st.sampled_from([None, None, 0, 5, NUM_STEPS + 1]),
    )
    def beat(
        self, number: int, back: int, step: int, announces: bool, first_step: int | None = None
    ) -> None:
        found = self.some_offer(number, back)
        if found is None:
            return
        one, offer = found
        announces = announces and 0 < step <= NUM_STEPS
        beat = AssignmentHeartbeat(
            fencing=offer.fencing,
            step=step,
            loss=3.0,
            tokens_per_second=64.0,
            checkpoint=self.training(offer.spec, one, step) if announces else None,
            checkpoint_step=step if announces else 0,
            first_step=first_step,
        )
        self.send(lambda: held.heartbeat(self.caller(one), offer.assignment, beat))

    def training(self, spec: ExpertSpec, one: Volunteer, step: int) -> Any:
        """Equal training gives equal bits, whatever the lease."""
        return self.make.blob(f"{spec.digest} {one.worker} {step}")

    def expert(self, spec: ExpertSpec, one: Volunteer) -> Any:
        return self.make.blob(f"{spec.digest} {one.worker}")

    @rule(number=st.integers(0, NUM_WORKERS - 1))
    def beat_idly(self, number: int) -> None:
        one = self.volunteers[number]
        beat = WorkerHeartbeat(capability=one.capability, maddrs=())
        answer = self.send(lambda: workers.heartbeat(self.caller(one), beat))
        if isinstance(answer, ApiError) and answer.body.code is ErrorCode.UNKNOWN_TOKEN:
            self.register(number)

    @rule(number=st.integers(0, NUM_WORKERS - 1), back=st.sampled_from([0, 0, 0, 1]))
    def submit(self, number: int, back: int) -> None:
        found = self.some_offer(number, back)
        if found is None:
            return
        one, offer = found
        request = Submission(
            request_id=self.new_id(),
            fencing=offer.fencing,
            manifest=self.expert(offer.spec, one),
            tokens_per_second=64.0,
            train_seconds=10.0,
        )

        async def send() -> Any:
            try:
                return await held.submit(self.caller(one), offer.assignment, request)
            except ApiError as error:
                if error.body.code is ErrorCode.LEASE_LOST:
                    self.late.add((offer.assignment, offer.fencing))
                raise

        self.send(send)

    @rule(
        number=st.integers(0, NUM_WORKERS - 1),
        back=st.sampled_from([0, 0, 1]),
        reason=st.sampled_from(REASONS),
        step=st.integers(0, NUM_STEPS),
    )
    def release(self, number: int, back: int, reason: Any, step: int) -> None:
        found = self.some_offer(number, back)
        if found is None:
            return
        one, offer = found
        request = Release(
            fencing=offer.fencing,
            reason=reason,
            detail="",
            checkpoint=self.training(offer.spec, one, step) if step else None,
            checkpoint_step=step,
        )
        self.send(lambda: held.release(self.caller(one), offer.assignment, request))

    @precondition(lambda self: self.sent)
    @rule(back=st.integers(0, 20))
    def deliver_again(self, back: int) -> None:
        """Twice, or late, or in another order."""
        self.ask(self.sent[-1 - back % len(self.sent)])

    @rule(seconds=st.sampled_from([1.0, 20.0, 45.0, 90.0, 140.0, 300.0, 1600.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += min(45.0, max(until - self.now, 0.001))
            self.tick()

    @rule(seconds=st.sampled_from([60.0, 5000.0]))
    def nobody_listens(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        with contextlib.suppress(Killed):
            self.api.tick()
            return
        self.die()

    @rule(sound=st.sampled_from([True, True, True, False]), which=st.integers(0, 3))
    def collect(self, sound: bool, which: int) -> None:
        with self.reader.read() as connection:
            rows = queries.announced_checkpoints(connection)
        if not rows:
            return
        row = rows[which % len(rows)]
        step = None if row.kind == "expert" else row.step
        manifest = self.make.manifest(row.spec, row.worker, step=step)

        def bring(connection: Connection) -> bool:
            if sound:
                queries.mark_durable(connection, row.checkpoint_id, manifest, self.clock())
            else:
                queries.mark_refused(connection, row.checkpoint_id, "header", self.clock())
            return True

        if not self.act(bring):
            return
        if sound:
            self.durable[row.checkpoint_id] = manifest.model_dump_json()
        with self.reader.read() as connection:
            found = queries.find_checkpoint(connection, row.checkpoint_id)
        assert found is not None
        assert found.state != "announced", "it would be collected for ever"

    @rule(decision=st.sampled_from([*DECISIONS, DECISIONS[0], DECISIONS[0]]))
    def verify(self, decision: Any) -> None:
        def decide(connection: Connection) -> None:
            for row in queries.durable_submissions(connection)[:1]:
                queries.record_verification(
                    connection, row.assignment, row.fencing, decision, "", self.clock()
                )

        self.act(decide)

    @rule(number=st.integers(0, NUM_WORKERS - 1), step=st.integers(0, NUM_STEPS))
    def train_to_the_end(self, number: int, step: int) -> None:
        """All that it takes, as far as the others let it."""
        self.ask_for_work(number)
        self.beat(number=number, back=0, step=step, announces=True)
        self.collect(sound=True, which=0)
        self.submit(number=number, back=0)
        self.collect(sound=True, which=0)
        self.verify(decision=DECISIONS[0])

    @rule(step=st.integers(0, NUM_STEPS))
    def the_slowest_works_alone(self, step: int) -> None:
        """Whoever asks next may be asked to overtake it."""
        self.nobody_listens(200.0)
        self.time_passes(160.0)
        self.ask_for_work(NUM_WORKERS - 1)
        self.beat(number=NUM_WORKERS - 1, back=0, step=step, announces=True)

    @rule(
        verb=st.sampled_from(["ban", "unban", "unban", "drain", "undrain", "undrain"]),
        number=st.integers(0, NUM_WORKERS - 1),
    )
    def mark(self, verb: Any, number: int) -> None:
        worker = self.volunteers[number].worker
        self.send(lambda: admin.mark(self.api.context, worker, verb, Order(reason="")))

    @rule(verb=st.sampled_from(["retry", "retry", "cancel", "fail"]), which=st.integers(0, 5))
    def settle(self, verb: Any, which: int) -> None:
        with self.reader.read() as connection:
            rows = queries.all_assignments(connection)
        assignment = rows[which % len(rows)].assignment
        self.send(lambda: admin.settle(self.api.context, assignment, verb, Order(reason="")))

    @rule(verb=st.sampled_from(["pause", "resume", "resume"]))
    def pause(self, verb: Any) -> None:
        self.send(lambda: admin.pause(self.api.context, verb, Order(reason="")))

    @rule(statements=st.integers(0, 60))
    def die_before_a_statement(self, statements: int) -> None:
        self.api.fuse.light(statements=statements)

    @rule(commits=st.integers(0, 2))
    def die_after_a_commit(self, commits: int) -> None:
        """What was done is durable, and nobody was told."""
        self.api.fuse.light(commits=commits)

    @rule()
    def restart(self) -> None:
        self.api.end()
        self.api = self.new_api()

    @invariant()
    def what_was_promised_holds(self) -> None:
        with self.reader.read() as connection:
            self.entries_give_the_tables(connection)
            at_most_one_lease(connection)
            self.nothing_is_forgotten(connection)
            each_accepted_spec_earns_its_steps_once(connection)
            nothing_waits_for_ever(connection, self.now)
            self.the_index_decides_as_a_fresh_one(connection)

    def entries_give_the_tables(self, connection: Connection) -> None:
        for entry in queries.read_entries(connection, after=self.replayed):
            assert (entry.number, entry.previous) == (self.replayed + 1, self.head)
            for row in entry.rows:
                write_row(self.shadow, row)
            self.replayed, self.head = entry.number, entry.digest
        assert queries.last_number(connection) == self.replayed
        assert _compare(connection, self.shadow) == []

    def nothing_is_forgotten(self, connection: Connection) -> None:
        for row in queries.all_assignments(connection):
            assert row.standing.fencing >= self.fencing.get(row.assignment, 0)
            self.fencing[row.assignment] = row.standing.fencing
        query = select(tables.checkpoints.c.checkpoint_id, tables.checkpoints.c.body)
        bodies = {row.checkpoint_id: row.body for row in connection.execute(query)}
        for checkpoint_id, body in self.durable.items():
            assert bodies[checkpoint_id] == body
        earned = set(map(tuple, connection.execute(select(tables.receipts))))
        assert self.receipts <= earned
        self.receipts = earned
        accepted = select(tables.attempts.c.assignment, tables.attempts.c.fencing).where(
            tables.attempts.c.state == "accepted"
        )
        assert not self.late & set(map(tuple, connection.execute(accepted)))

    def the_index_decides_as_a_fresh_one(self, connection: Connection) -> None:
        followed = copy.deepcopy(self.api.context.fleet)
        # It looks for workers that fell silent once a heartbeat: so far it may lag.
        followed._swept_at = 0.0
        followed.refresh(connection, self.now)
        fresh = Fleet(self.settings)
        fresh.refresh(connection, self.now)
        for one in self.volunteers:
            for row in queries.these_workers(connection, [one.worker]):
                if row.banned:
                    continue
                asking = replace(row, asked_at=self.now)
                since = row.waits_since
                expected = fresh.choose(asking, now=self.now, waits_since=since)
                found = followed.choose(asking, now=self.now, waits_since=since)
                assert found == expected


def at_most_one_lease(connection: Connection) -> None:
    """An assignment has one, a device holds one, and so does a worker without accepted work."""
    live = queries.live_attempts(connection)
    assert len({one.assignment for one in live}) == len({one.seat for one in live}) == len(live)
    several = {one.worker for one in live if one.device_number} & {
        one.worker for one in live if not one.device_number
    }
    assert all(queries.is_proven(connection, worker) for worker in several)
    holders = {
        (row.assignment, row.standing.fencing, row.standing.worker, row.state.value)
        for row in queries.all_assignments(connection)
        if row.state in LIVE
    }
    assert holders == {(one.assignment, one.fencing, one.worker, one.state) for one in live}


def each_accepted_spec_earns_its_steps_once(connection: Connection) -> None:
    rows = queries.all_assignments(connection)
    accepted = [row for row in rows if row.state is AssignmentState.ACCEPTED]
    specs = {row.spec.digest: row for row in accepted}
    assert len(specs) == len(accepted)
    assert specs.keys() == queries.accepted(connection).keys()
    earned: dict[str, int] = {}
    entries: dict[str, set[int]] = {}
    for receipt in connection.execute(select(tables.receipts)):
        spec = specs[receipt.spec].spec
        assert receipt.credit == step_flops(spec) * receipt.num_steps
        earned[receipt.spec] = earned.get(receipt.spec, 0) + receipt.num_steps
        entries.setdefault(receipt.spec, set()).add(receipt.entry)
    assert earned == {digest: row.spec.train.num_steps for digest, row in specs.items()}
    assert all(len(numbers) == 1 for numbers in entries.values())


def nothing_waits_for_ever(connection: Connection, now: float) -> None:
    waiting = {row.assignment for row in queries.durable_submissions(connection)}
    for row in queries.all_assignments(connection):
        standing = row.standing
        if row.state is AssignmentState.OPEN:
            assert standing.worker is None
            assert standing.not_before <= now + MAX_BACKOFF_SECONDS
        elif standing.expires_at is not None:
            # What the api grants just after a sign of life is forgiven from that sign on.
            assert standing.expires_at <= now + BOUNDS[row.state] + MAX_TICK_SECONDS
        elif row.state is AssignmentState.SUBMITTED:
            assert row.assignment in waiting
        else:
            assert row.state not in LIVE


def test_any_history_keeps_what_was_promised(make, begun, caplog):
    # Deaths are the rule here, and their tracebacks cost more than the rest.
    caplog.set_level(logging.CRITICAL + 1, logger="coordinator")

    class History(AnyHistory):
        pass

    History.make, History.begun = make, begun
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            # A step costs a commit: what is found is short enough to be read as it is.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )


def tell_a_story(state: AnyHistory) -> None:
    """One worker finishes the seed while another one starts; the same in every process."""
    state.everybody_joins()
    state.ask_for_work(1)
    state.train_to_the_end(number=0, step=5)
    state.time_passes(90.0)
    state.train_to_the_end(number=2, step=0)
    state.release(number=1, back=0, reason="stopped", step=3)
    state.tick()


def tell_it_until_killed(make: Any, place: str, statements: int) -> None:
    fuse = DeadlyFuse()
    AnyHistory.make, AnyHistory.begun = make, Path(place.removeprefix("sqlite:///"))
    AnyHistory.place, AnyHistory.fuse = place, fuse
    state = AnyHistory()
    fuse.light(statements=statements)
    tell_a_story(state)


@pytest.mark.parametrize("share", [0.15, 0.4, 0.6, 0.8, 0.95])
def test_a_process_that_is_killed_leaves_a_ledger_with_which_another_one_goes_on(
    make, begun, tmp_path, share
):
    class History(AnyHistory):
        pass

    History.make, History.begun = make, begun
    whole = History()
    tell_a_story(whole)
    statements = int(share * whole.api.fuse.count)
    whole.teardown()
    path = tmp_path / "ledger.sqlite"
    shutil.copyfile(begun, path)
    History.place = f"sqlite:///{path}"
    child = multiprocessing.get_context("spawn").Process(
        target=tell_it_until_killed, args=(make, History.place, statements)
    )
    child.start()
    child.join(50)
    assert child.exitcode == -signal.SIGKILL
    after = History()
    after.now += 1000.0
    after.what_was_promised_holds()
    tell_a_story(after)
    after.what_was_promised_holds()
    after.teardown()
