"""The phases of the benchmark, one after the other: joining, steady load, costs, the limit."""

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.load.costs import measure_costs
from benchmarks.load.ground import RUN, Ground
from benchmarks.load.measures import Measures
from benchmarks.load.player import Mix, Player
from benchmarks.load.report import PhaseReport, Report, phase_report
from benchmarks.load.server import HOST, ApiServer, Usage, usage_of
from benchmarks.load.volunteers import Volunteer
from benchmarks.load.wire import Wire, request_bytes

HOLDERS = 200
"""Workers that hold a lease while the others join: none of their leases may run out."""

HOLDER_BEATS = 10.0
WARM_UP_SECONDS = 5.0
"""Of steady load before it is measured: as long as a lease takes."""

THINK_SECONDS = 2.0
COST_WORKERS = 400
LIMIT_SECONDS = 20.0
MAX_LIMIT_STEPS = 10
LIMIT_PRECISION = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for. Rates are a second, of all workers together."""

    workers: int
    heartbeats: float
    leases: float
    seconds: float
    join_burst: int
    join_seconds: float
    reconnect: bool
    find_limit: bool
    seed: int


@dataclass
class _Meter:
    """Wall time and what both processes used, from entering `measuring` to leaving it."""

    seconds: float = 0.0
    usages: list[Usage] = field(default_factory=list)


class Benchmark:
    """One server, one player, and the report that grows. `say` is told how far it is."""

    def __init__(
        self, plan: Plan, ground: Ground, server: ApiServer, *, report: Report,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._plan = plan
        self._server = server
        self._report = report
        self._say = say
        self._self = psutil.Process()
        self._player = Player(
            wire=Wire(HOST, ground.port, reconnect=plan.reconnect),
            coordinator=ground.coordinator,
            run=RUN,
            rng=random.Random(plan.seed),
        )
        say(f"making {plan.workers} keys")
        self._volunteers = [Volunteer.create() for _ in range(plan.workers)]

    async def run(self, show: Callable[[PhaseReport], None]) -> None:
        """All phases; each is shown as soon as it is over."""
        plan = self._plan
        if plan.join_burst:
            self._say(f"{plan.join_burst} workers join in {plan.join_seconds:.0f} s")
            show(await self._join_burst())
        rest = [one for one in self._volunteers if not one.token]
        if rest:
            self._say(f"the other {len(rest)} workers join")
            show(await self._join(rest))
        joined = [one for one in self._volunteers if one.token]
        self._say(f"steady load for {plan.seconds:.0f} s")
        steady = await self._steady("steady", joined, leases=plan.leases, seconds=plan.seconds)
        show(steady)
        self._say("the cost of each route")
        idle = [one for one in joined if not one.num_submitted][:COST_WORKERS]
        measures = Measures()
        self._report.costs = await measure_costs(self._player, self._server, idle, measures)
        self._report.cost_errors = dict(measures.errors)
        if plan.find_limit:
            self._report.limit = await self._find_limit(joined, show)
        await self._count_alive()
        self._player.wire.close()

    async def _join(self, rest: Sequence[Volunteer]) -> PhaseReport:
        measures, meter = Measures(), _Meter()
        with self._measuring(meter):
            await self._player.join_all(measures, rest)
        rates = {"workers": len(rest) / meter.seconds}
        return self._phase("joining as fast as they may", rates, measures, meter)

    async def _join_burst(self) -> PhaseReport:
        plan, player, meter = self._plan, self._player, _Meter()
        measures = Measures(start=math.inf)
        number = min(plan.join_burst, plan.workers)
        holders = self._volunteers[: min(HOLDERS, number // 10)]
        joining = self._volunteers[len(holders) : number]
        await player.join_all(measures, holders)
        held = [(one, await player.take(measures, one, due=player.now())) for one in holders]
        leases = [(one, lease) for one, lease in held if lease is not None]
        measures.start = player.now()
        with self._measuring(meter):
            async with asyncio.TaskGroup() as tasks:
                for part in (
                    player.join_burst(measures, joining, seconds=plan.join_seconds),
                    player.heartbeats(
                        measures,
                        self._volunteers[:number],
                        rate=plan.heartbeats,
                        seconds=plan.join_seconds,
                    ),
                    player.hold(measures, leases, rate=HOLDER_BEATS, seconds=plan.join_seconds),
                ):
                    tasks.create_task(part)
        measures.end = player.now()
        for one, lease in leases:
            await player.end(measures, one, lease, submits=False, due=player.now())
        rates = {"workers": len(joining) / plan.join_seconds, "heartbeats": plan.heartbeats}
        return self._phase("join burst", rates, measures, meter)

    async def _steady(
        self, name: str, joined: Sequence[Volunteer], *, leases: float, seconds: float
    ) -> PhaseReport:
        """The steady load: for a while unmeasured, then measured, then until the last release."""
        plan, player, meter = self._plan, self._player, _Meter()
        warm_up = min(WARM_UP_SECONDS, seconds)
        start = player.now() + warm_up
        measures = Measures(start=start, end=start + seconds)
        mix = Mix(leases=leases, think_seconds=min(THINK_SECONDS, seconds / 10))
        async with asyncio.TaskGroup() as tasks:
            for part in (
                player.heartbeats(
                    measures, joined, rate=plan.heartbeats, seconds=warm_up + seconds
                ),
                player.leases(measures, joined, mix, seconds=warm_up + seconds),
            ):
                tasks.create_task(part)
            await asyncio.sleep(warm_up)
            with self._measuring(meter):
                await asyncio.sleep(seconds)
        rates = {"heartbeats": plan.heartbeats, "leases": leases}
        return self._phase(name, rates, measures, meter)

    async def _find_limit(
        self, joined: Sequence[Volunteer], show: Callable[[PhaseReport], None]
    ) -> float:
        """Acknowledged leases a second at the highest rate that leaves every promise kept.

        The rate doubles until something gives, and is then halved in.
        """
        good = reached = 0.0
        bad: float | None = None
        rate = self._plan.leases
        for _ in range(MAX_LIMIT_STEPS):
            self._say(f"looking for the limit: {rate:.0f} leases a second")
            seconds = min(LIMIT_SECONDS, self._plan.seconds)
            phase = await self._steady("limit", joined, leases=rate, seconds=seconds)
            show(phase)
            if phase.kept_up:
                good, reached = rate, phase.acknowledged_a_second
            else:
                bad = rate
            if bad is not None and bad - good < LIMIT_PRECISION * bad:
                break
            rate = 2 * good if bad is None else (good + bad) / 2
        return reached

    @contextlib.contextmanager
    def _measuring(self, meter: _Meter) -> Iterator[None]:
        self._player.lateness = []
        started = time.perf_counter()
        meter.usages += [self._server.usage(), usage_of(self._self)]
        yield
        meter.usages += [self._server.usage(), usage_of(self._self)]
        meter.seconds = time.perf_counter() - started

    def _phase(
        self, name: str, rates: Mapping[str, float], measures: Measures, meter: _Meter
    ) -> PhaseReport:
        phase = phase_report(
            name,
            measures,
            seconds=meter.seconds,
            rates=rates,
            usages=meter.usages,
            lateness=self._player.lateness,
        )
        self._report.phases.append(phase)
        return phase

    async def _count_alive(self) -> None:
        alive: set[str] = set()
        after = ""
        while page := await self._page(f"/v1/workers?after={after}"):
            alive |= {row["worker"] for row in page if row["state"] in ("idle", "working")}
            after = page[-1]["worker"]
        joined = [one.identity.peer_id for one in self._volunteers if one.token]
        self._report.joined = len(joined)
        self._report.alive = sum(one in alive for one in joined)

    async def _page(self, path: str) -> list[dict[str, str]]:
        _, body = await self._player.wire.call(request_bytes("GET", path))
        rows: list[dict[str, str]] = json.loads(body)
        return rows
