"""The server's CPU time for one request of each route: one route at a time, eight requests open."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.load.measures import Measures
from benchmarks.load.player import Player, side_by_side
from benchmarks.load.server import ApiServer
from benchmarks.load.volunteers import CHALLENGE, Held, Volunteer

CONCURRENCY = 8
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """What one request of a route cost, and how many a second were answered."""

    count: int
    cpu_milliseconds: float
    a_second: float


async def measure_costs(
    player: Player, server: ApiServer, volunteers: Sequence[Volunteer], measures: Measures
) -> dict[str, Cost]:
    """The cost of every route, with `volunteers` that have joined and hold nothing."""
    half = len(volunteers) // 2
    strangers = [Volunteer.create() for _ in volunteers]
    held: dict[int, Held] = {}
    loop = asyncio.get_running_loop()

    def time_route(route: str, calls: Sequence[Callable[[], Awaitable[object]]]) -> Awaitable[None]:
        return _time_route(costs, server, route, calls)

    def call(route: str, request: Callable[[], bytes]) -> Callable[[], Awaitable[object]]:
        async def once() -> object:
            return await player.call(measures, route, request(), due=loop.time())

        return once

    async def lease(number: int) -> None:
        answer = await player.call(measures, "lease", volunteers[number].lease(), due=loop.time())
        if answer is not None and answer["offer"] is not None:
            offer = answer["offer"]
            held[number] = Held(
                offer["assignment"], offer["fencing"], offer["spec"]["train"]["num_steps"]
            )

    costs: dict[str, Cost] = {}
    before = server.usage().cpu_seconds
    await asyncio.sleep(IDLE_SECONDS)
    idle = server.usage().cpu_seconds - before
    costs["(one idle second)"] = Cost(1, 1000 * idle / IDLE_SECONDS, 1.0)
    await time_route("challenge", [call("challenge", lambda: CHALLENGE) for _ in strangers])
    await time_route(
        "challenge + register",
        [partial(player.join, measures, one, due=loop.time()) for one in strangers],
    )
    await time_route(
        "heartbeat", [call("heartbeat", partial(_heartbeat, one)) for one in volunteers]
    )
    await time_route("lease", [partial(lease, number) for number in range(len(volunteers))])
    holders = sorted(held)
    for route, numbers, make in (
        ("acknowledge", holders, Volunteer.acknowledge),
        ("assignment heartbeat", holders, partial(Volunteer.progress, share=0.5)),
        ("submit", holders[:half], Volunteer.submit),
        ("release", holders[half:], Volunteer.release),
    ):
        await time_route(
            route,
            [call(route, partial(make, volunteers[number], held[number])) for number in numbers],
        )
    return costs


def _heartbeat(volunteer: Volunteer) -> bytes:
    return volunteer.heartbeat


async def _time_route(
    costs: dict[str, Cost],
    server: ApiServer,
    route: str,
    calls: Sequence[Callable[[], Awaitable[object]]],
) -> None:
    if not calls:
        return
    before, started = server.usage().cpu_seconds, time.perf_counter()
    await side_by_side(calls, concurrency=CONCURRENCY)
    seconds = time.perf_counter() - started
    used = server.usage().cpu_seconds - before
    costs[route] = Cost(len(calls), 1000 * used / len(calls), len(calls) / seconds)
