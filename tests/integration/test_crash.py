"""The api is killed in the middle of its work, over and over, over one ledger.

Workers talk to the real api process; every request and every answer that arrived is kept. In the
end the ledger is audited against that history: what was answered was done, and done once.
"""

import asyncio
import json
import random
import secrets
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from benchmarks.load.ground import RUN, make_run
from benchmarks.load.player import side_by_side
from benchmarks.load.server import HOST, ApiServer, free_port
from benchmarks.load.volunteers import CHALLENGE, Volunteer
from benchmarks.load.wire import Wire, WireError, request_bytes
from coordinator.ledger import Ledger, queries, tables
from coordinator.ledger.rebuild import verify_ledger
from protocol.digests import digest_bytes

NUM_REPLAYED = 600
NUM_WORKERS = 50
CONCURRENCY = 16
MAX_ACTS = 40
LIVE = ("offered", "running")
HEARTBEAT_SECONDS = 120.0
REPEATS = 0.1
"""Share of requests that are sent again at once, as if the reply had been lost."""


@dataclass
class Exchange:
    """One request as it was sent, and the answers that arrived, one for each time it was sent."""

    kind: str
    worker: str
    request: bytes
    facts: dict[str, Any]
    sent: int = 0
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return any(status == 200 for status, _ in self.answers)


@dataclass
class Member:
    """A worker as it knows itself: what it holds, and what it must send again."""

    volunteer: Volunteer
    lost: Exchange | None = None
    offer: dict[str, Any] | None = None
    acknowledged: bool = False
    step: int = 0
    num_submitted: int = 0
    num_acts: int = 0

    @property
    def id(self) -> str:
        return self.volunteer.identity.peer_id

    @property
    def is_done(self) -> bool:
        """Another takes its place: it is given no more work, or would soon call too often."""
        ends = self.num_submitted > 1 or self.num_acts > MAX_ACTS
        return ends and self.lost is None and self.offer is None


class Storm:
    """Workers in a storm: sixteen requests at a time, and an api that is killed between them."""

    def __init__(self, ground, server: ApiServer, rng: random.Random, *, num_workers: int) -> None:
        self.ground, self.server, self.rng = ground, server, rng
        self.wire = Wire(HOST, ground.port)
        self.history: list[Exchange] = []
        self.num_sent = self.num_kills = 0
        self.up = asyncio.Event()
        self.up.set()
        self.members = [Member(Volunteer.create()) for _ in range(num_workers)]

    async def rage(self, num_requests: int, kill_at: int | None) -> None:
        """`num_requests` more; the api is killed when `kill_at` of them have been sent."""
        self.stop_at = self.num_sent + num_requests
        self.kill_at = None if kill_at is None else self.num_sent + kill_at
        free = list(self.members)
        self.rng.shuffle(free)

        async def one_after_the_other() -> None:
            while self.num_sent < self.stop_at:
                member = free.pop(self.rng.randrange(len(free)))
                await self.act(member)
                member.num_acts += 1
                if member.is_done:
                    self.members.remove(member)
                    member = Member(Volunteer.create())
                    self.members.append(member)
                free.append(member)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENCY):
                tasks.create_task(one_after_the_other())

    async def act(self, member: Member) -> None:
        """The next thing that this worker does."""
        if member.lost is not None:
            exchange, member.lost = member.lost, None
        elif not member.volunteer.token:
            exchange = await self.registration(member)
        else:
            exchange = self.choose(member)
        if exchange is None:
            return
        if not exchange.sent:
            self.history.append(exchange)
        answer = await self.send(exchange)
        if answer is not None and self.rng.random() < REPEATS and exchange.kind != "register":
            await self.send(exchange)
        if answer is None:
            # A registration is begun anew: its token would never reach us.
            member.lost = exchange if exchange.kind != "register" else None
            return
        self.learn(member, exchange, *answer)

    def choose(self, member: Member) -> Exchange:
        """A request that fits what the worker holds."""
        rng, volunteer, offer = self.rng, member.volunteer, member.offer
        if offer is None:
            if rng.random() < 0.3:
                return self.exchange(member, "heartbeat", volunteer.heartbeat)
            return self.exchange(member, "lease", volunteer.lease())
        facts = {"assignment": offer["assignment"], "fencing": offer["fencing"]}
        if not member.acknowledged:
            return self.post(member, "acknowledge", {"fencing": offer["fencing"]}, facts)
        kind = rng.choices(["progress", "submit", "release"], [0.5, 0.3, 0.2])[0]
        if kind == "progress":
            member.step += rng.randint(1, 20)
            return self.progress(member, facts)
        if kind == "submit":
            manifest = digest_bytes(f"{facts} {member.id}".encode())
            body = {
                "request_id": secrets.token_hex(16),
                "fencing": offer["fencing"],
                "manifest": {"digest": manifest, "size": 800},
                "tokens_per_second": 100.0,
                "train_seconds": 5.0,
            }
            return self.post(member, "submit", body, {**facts, "manifest": manifest})
        body = {
            "fencing": offer["fencing"],
            "reason": "stopped",
            "detail": "",
            "checkpoint": None,
        }
        return self.post(member, "release", body, facts)

    def progress(self, member: Member, facts: dict[str, Any]) -> Exchange:
        checkpoint = None
        if self.rng.random() < 0.5:
            named = digest_bytes(f"{facts} {member.step}".encode())
            checkpoint = {"digest": named, "size": 800}
        body = {
            "fencing": facts["fencing"],
            "step": member.step,
            "loss": 3.0,
            "tokens_per_second": 100.0,
            "checkpoint": checkpoint,
            "checkpoint_step": member.step if checkpoint else 0,
        }
        return self.post(member, "heartbeat", body, {**facts, "step": member.step})

    def post(
        self, member: Member, verb: str, body: dict[str, Any], facts: dict[str, Any]
    ) -> Exchange:
        request = request_bytes(
            "POST",
            f"/v1/assignments/{facts['assignment']}/{verb}",
            json.dumps(body).encode(),
            token=member.volunteer.token,
        )
        kind = "progress" if verb == "heartbeat" else verb
        return self.exchange(member, kind, request, facts)

    def exchange(
        self, member: Member, kind: str, request: bytes, facts: dict[str, Any] | None = None
    ) -> Exchange:
        return Exchange(kind, member.id, request, facts or {})

    async def registration(self, member: Member) -> Exchange | None:
        challenge = await self.send(self.exchange(member, "challenge", CHALLENGE))
        if challenge is None:
            return None
        request = member.volunteer.register(
            coordinator=self.ground.coordinator, run=RUN, nonce=challenge[1]["nonce"]
        )
        return self.exchange(member, "register", request)

    async def send(self, exchange: Exchange) -> tuple[int, dict[str, Any]] | None:
        """The answer, None when it did not arrive. Waits while the api is down."""
        await self.up.wait()
        exchange.sent += 1
        self.num_sent += 1
        if self.kill_at is not None and self.num_sent >= self.kill_at:
            self.kill_at = None
            asyncio.get_running_loop().call_later(self.rng.uniform(0, 0.02), self.kill)
        try:
            status, body = await self.wire.call(exchange.request)
        except WireError:
            return None
        answer = (status, json.loads(body))
        exchange.answers.append(answer)
        return answer

    async def settle(self) -> None:
        """Whoever misses an answer asks again."""
        for member in self.members:
            while member.lost is not None:
                await self.act(member)

    def kill(self) -> None:
        """SIGKILL, and after it a new api over the same ledger."""
        self.num_kills += 1
        self.up.clear()
        self.server.kill()
        self.restarting = asyncio.create_task(self.restart())

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.start)
        self.up.set()

    def learn(
        self, member: Member, exchange: Exchange, status: int, answer: dict[str, Any]
    ) -> None:
        """What the worker makes of an answer. After a refusal it goes on as before."""
        if status != 200:
            return
        if exchange.kind == "register":
            member.volunteer.joined(answer["token"])
        elif exchange.kind == "lease":
            member.offer, member.acknowledged, member.step = answer["offer"], False, 0
        elif exchange.kind == "acknowledge":
            member.acknowledged = True
        elif exchange.kind in ("submit", "release"):
            member.offer = None
            member.num_submitted += exchange.kind == "submit"


def leases_of(history: list[Exchange], *kinds: str) -> Counter[tuple[str, int]]:
    """How often each lease was named by requests of these kinds that were answered 200."""
    return Counter(
        (exchange.facts["assignment"], exchange.facts["fencing"])
        for exchange in history
        if exchange.kind in kinds and exchange.done
    )


class Audit:
    """What the ledger holds, to be compared with what the workers were told."""

    def __init__(self, url: str) -> None:
        ledger = Ledger(url)
        try:
            with ledger.read() as connection:
                self.verdict = verify_ledger(connection)
                self.entries = []
                while found := queries.read_entries(connection, after=len(self.entries)):
                    self.entries += found
                self.tables = {
                    table.name: [dict(row._mapping) for row in connection.execute(table.select())]
                    for table in tables.metadata.sorted_tables
                }
        finally:
            ledger.close()
        self.attempts = {
            (row["assignment"], row["fencing"]): row for row in self.tables["attempts"]
        }

    def decided(self, kind: str) -> Counter[tuple[str, int]]:
        """How often an entry of this kind names each lease."""
        return Counter(
            (entry.facts["assignment"], entry.facts["fencing"])
            for entry in self.entries
            if entry.kind == kind
        )

    def lasting_state(self) -> dict[str, list[tuple[Any, ...]]]:
        """The state tables without their volatile columns, in an order of their own."""
        return {
            table.name: sorted(
                tuple(repr(row[column.name]) for column in table.columns if not column.info)
                for row in self.tables[table.name]
            )
            for table in tables.STATE_TABLES
        }


def check_answers(history: list[Exchange]) -> None:
    """Nobody was refused, and a request that was repeated got the same answer again."""
    refused = Counter(
        f"{exchange.kind}: {status} {answer.get('code')} {answer.get('message')}"
        for exchange in history
        for status, answer in exchange.answers
        if status != 200
    )
    assert not refused
    for exchange in history:
        if exchange.kind in ("lease", "submit"):
            told = [answer for _, answer in exchange.answers]
            assert all(answer == told[0] for answer in told), exchange


def check_offers(history: list[Exchange], audit: Audit) -> None:
    """Every offer that somebody was given is there, was made once, and to that worker."""
    offered = audit.decided("offer")
    assert max(offered.values()) == 1
    assert set(offered) == set(audit.attempts)
    given = [
        (exchange.worker, exchange.answers[0][1]["offer"])
        for exchange in history
        if exchange.kind == "lease" and exchange.done
    ]
    told = {(offer["assignment"], offer["fencing"]): worker for worker, offer in given if offer}
    assert len(told) == sum(offer is not None for _, offer in given)
    for lease, worker in told.items():
        assert audit.attempts[lease]["worker"] == worker
    asked = Counter(exchange.worker for exchange in history if exchange.kind == "lease")
    made = Counter(row["worker"] for row in audit.attempts.values())
    assert all(made[worker] <= asked[worker] for worker in made)
    live = [row for row in audit.attempts.values() if row["state"] in LIVE]
    assert len({row["worker"] for row in live}) == len({row["assignment"] for row in live})
    assert len({row["worker"] for row in live}) == len(live)


def check_ends(history: list[Exchange], audit: Audit) -> None:
    """What was acknowledged, submitted or released is so, once, and nothing else is."""
    states = {"acknowledge": None, "submit": "submitted", "release": "released"}
    for kind, state in states.items():
        decided, answered = audit.decided(kind), leases_of(history, kind)
        asked = {
            (exchange.facts["assignment"], exchange.facts["fencing"])
            for exchange in history
            if exchange.kind == kind
        }
        assert max(decided.values()) == 1
        assert set(answered) <= set(decided) <= asked
        for lease in decided:
            assert state is None or audit.attempts[lease]["state"] == state
    submitted = Counter(
        (row["assignment"], row["fencing"], row["manifest_digest"])
        for row in audit.tables["checkpoints"]
        if row["kind"] == "expert"
    )
    for exchange in history:
        if exchange.kind == "submit" and exchange.done:
            assert submitted[tuple(exchange.facts.values())] == 1
    assert not audit.decided("expire")


def check_progress(history: list[Exchange], audit: Audit) -> None:
    """Progress that was answered is there."""
    told: defaultdict[tuple[str, int], int] = defaultdict(int)
    for exchange in history:
        if exchange.kind == "progress" and exchange.done:
            lease = exchange.facts["assignment"], exchange.facts["fencing"]
            told[lease] = max(told[lease], exchange.facts["step"])
    rows = audit.tables["progress"]
    known = {(row["assignment"], row["fencing"]): row["step"] for row in rows}
    for lease, step in told.items():
        if audit.attempts[lease]["state"] in LIVE:
            assert known[lease] >= step, lease


def check_workers(history: list[Exchange], audit: Audit) -> None:
    """Whoever was told that it is registered is, and nobody more often than it asked to be."""
    asked = Counter(exchange.worker for exchange in history if exchange.kind == "register")
    done = {
        exchange.worker for exchange in history if exchange.kind == "register" and exchange.done
    }
    known = {row["worker"] for row in audit.tables["workers"]}
    assert done <= known <= set(asked)
    entries = Counter(
        row.values["worker"]
        for entry in audit.entries
        if entry.kind == "register"
        for row in entry.rows
    )
    assert all(0 < entries[worker] <= asked[worker] for worker in known)


@pytest.fixture
def make_ground(tmp_path):
    def make(*, specs: int):
        return make_run(
            tmp_path,
            url=None,
            port=free_port(),
            heartbeat_seconds=HEARTBEAT_SECONDS,
            specs=specs,
        )

    return make


@pytest.mark.parametrize(
    ("kills", "requests"),
    [
        pytest.param(3, 300, id="a short storm"),
        pytest.param(
            20, 1000, id="a long storm", marks=[pytest.mark.slow, pytest.mark.timeout(900)]
        ),
    ],
)
async def test_what_was_answered_survives_being_killed_and_was_done_once(
    make_ground, kills, requests
):
    rng = random.Random(kills)
    ground = make_ground(specs=kills * requests // 4)
    with ApiServer(ground) as server:
        storm = Storm(ground, server, rng, num_workers=NUM_WORKERS)
        for _ in range(kills):
            await storm.rage(requests, rng.randint(requests // 5, requests - requests // 5))
        await storm.settle()
        storm.wire.close()
    audit = Audit(ground.url)
    assert audit.verdict.holds, audit.verdict
    lost = sum(len(exchange.answers) < exchange.sent for exchange in storm.history)
    assert storm.num_kills == kills <= lost
    check_answers(storm.history)
    for check in (check_offers, check_ends, check_progress, check_workers):
        check(storm.history, audit)


async def test_requests_that_arrive_again_and_in_any_order_change_nothing(make_ground):
    rng = random.Random(4)
    ground = make_ground(specs=NUM_REPLAYED // 2)
    with ApiServer(ground) as server:
        storm = Storm(ground, server, rng, num_workers=2 * NUM_WORKERS)
        await storm.rage(NUM_REPLAYED, None)
        await storm.settle()
        before = Audit(ground.url)
        again = 2 * storm.history
        rng.shuffle(again)
        await side_by_side([partial(storm.send, exchange) for exchange in again])
        storm.wire.close()
    after = Audit(ground.url)
    assert after.verdict.holds, after.verdict
    assert after.lasting_state() == before.lasting_state()
    assert [entry.kind for entry in after.entries] == [entry.kind for entry in before.entries]
