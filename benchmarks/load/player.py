"""Plays the workers: each request leaves when its time has come, however slow the answers are."""

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.measures import WHOLE, Measures
from benchmarks.load.volunteers import CHALLENGE, Held, Volunteer
from benchmarks.load.wire import Wire, WireError

MAX_ASKS = 50
"""A worker that is put off that often gives up: the run is out of work."""

MAY_BE_BUSY = frozenset({"challenge", "register", "lease"})
"""Everything else has reserved capacity: a heartbeat that is put off is an error."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How leases go: so many a second, of all workers together.

    A lease is asked for, acknowledged at once, renewed `think_seconds` later by the trainer's
    progress, and after as long again submitted (`submit_share`, and once a worker, because nobody
    collects) or released.
    """

    leases: float
    think_seconds: float
    submit_share: float = 0.8


@dataclass
class Player:
    """Workers that talk to one coordinator. `lateness`: by how much the player itself was late."""

    wire: Wire
    coordinator: str
    run: str
    rng: random.Random
    lateness: list[float] = field(default_factory=list)

    def now(self) -> float:
        """The event loop's time, in seconds."""
        return asyncio.get_running_loop().time()

    async def call(
        self, measures: Measures, route: str, request: bytes, *, due: float
    ) -> dict[str, Any] | None:
        """The answer as JSON; None, and an error is counted, when there is none or a refusal.

        Told that the coordinator is busy, we ask again when it says so, as a worker does.
        """
        for _ in range(MAX_ASKS):
            try:
                status, body = await self.wire.call(request)
            except WireError as error:
                measures.failed(route, str(error))
                return None
            answer: dict[str, Any] = json.loads(body)
            if status == 200:
                measures.answered(route, due=due, at=self.now())
                return answer
            if answer["code"] != "busy" or route not in MAY_BE_BUSY:
                measures.failed(route, f"{status} {answer['code']}: {answer['message']}")
                return None
            measures.happened(f"busy: {route}", at=self.now())
            due = self.now() + answer["retry_after_seconds"] * self.rng.uniform(0.5, 1.5)
            await self._until(due)
        measures.failed(route, f"busy {MAX_ASKS} times")
        return None

    async def join(self, measures: Measures, volunteer: Volunteer, *, due: float) -> bool:
        """Challenge, signature, registration. Whether it worked."""
        challenge = await self.call(measures, "challenge", CHALLENGE, due=due)
        if challenge is None:
            return False
        signed = volunteer.register(
            coordinator=self.coordinator, run=self.run, nonce=challenge["nonce"]
        )
        answer = await self.call(measures, "register", signed, due=self.now())
        if answer is None:
            return False
        volunteer.joined(answer["token"])
        return True

    async def join_all(self, measures: Measures, volunteers: Sequence[Volunteer]) -> None:
        """All of them as fast as the coordinator takes them, sixteen at a time."""

        async def one(volunteer: Volunteer) -> None:
            await self.join(measures, volunteer, due=self.now())

        await side_by_side([lambda v=volunteer: one(v) for volunteer in volunteers])  # type: ignore[misc]

    async def join_burst(
        self, measures: Measures, volunteers: Sequence[Volunteer], *, seconds: float
    ) -> None:
        """All of them, spread evenly over `seconds`."""
        start = self.now()
        async with asyncio.TaskGroup() as tasks:
            for number, volunteer in enumerate(volunteers):
                due = start + number * seconds / len(volunteers)
                await self._until(due)
                tasks.create_task(self.join(measures, volunteer, due=due))

    async def take(self, measures: Measures, volunteer: Volunteer, *, due: float) -> Held | None:
        """Ask for work until there is an offer, and acknowledge it."""
        asked_at, request = due, volunteer.lease()
        for _ in range(MAX_ASKS):
            answer = await self.call(measures, "lease", request, due=due)
            if answer is None:
                return None
            if answer["offer"] is not None:
                break
            measures.happened("busy" if answer.get("busy") else "no offer", at=self.now())
            due = self.now() + answer["retry_after_seconds"] * self.rng.uniform(0.5, 1.5)
            await self._until(due)
            request = volunteer.lease()
        else:
            measures.failed("lease", f"put off {MAX_ASKS} times")
            return None
        measures.happened("granted", at=self.now())
        offer = answer["offer"]
        held = Held(offer["assignment"], offer["fencing"], offer["spec"]["train"]["num_steps"])
        state = await self.call(
            measures, "acknowledge", volunteer.acknowledge(held), due=self.now()
        )
        if state is None:
            return None
        measures.happened("acknowledged", at=self.now())
        measures.answered(WHOLE, due=asked_at, at=self.now())
        return held

    async def progress(
        self, measures: Measures, volunteer: Volunteer, held: Held, *, due: float
    ) -> None:
        """The trainer's heartbeat."""
        request = volunteer.progress(held, share=self.rng.random())
        await self.call(measures, "assignment heartbeat", request, due=due)

    async def end(
        self, measures: Measures, volunteer: Volunteer, held: Held, *, submits: bool, due: float
    ) -> None:
        """Submit or release."""
        if submits:
            volunteer.num_submitted += 1
            await self.call(measures, "submit", volunteer.submit(held), due=due)
        else:
            await self.call(measures, "release", volunteer.release(held), due=due)

    async def heartbeats(
        self,
        measures: Measures,
        volunteers: Sequence[Volunteer],
        *,
        rate: float,
        seconds: float,
    ) -> None:
        """`rate` heartbeats a second for `seconds`, of the workers in turn that have joined."""
        turn = 0
        async with asyncio.TaskGroup() as tasks:
            async for due in self._arrivals(rate, seconds):
                for _ in range(len(volunteers)):
                    turn = (turn + 1) % len(volunteers)
                    if volunteers[turn].heartbeat and not volunteers[turn].leasing:
                        break
                else:
                    continue
                beat = volunteers[turn].heartbeat
                tasks.create_task(self.call(measures, "heartbeat", beat, due=due))

    async def hold(
        self,
        measures: Measures,
        leases: Sequence[tuple[Volunteer, Held]],
        *,
        rate: float,
        seconds: float,
    ) -> None:
        """Renew `leases` in turn, `rate` a second for `seconds`."""
        turn = 0
        async with asyncio.TaskGroup() as tasks:
            async for due in self._arrivals(rate if leases else 0.0, seconds):
                volunteer, held = leases[turn % len(leases)]
                tasks.create_task(self.progress(measures, volunteer, held, due=due))
                turn += 1

    async def leases(
        self, measures: Measures, volunteers: Sequence[Volunteer], mix: Mix, *, seconds: float
    ) -> None:
        """`mix.leases` whole leases a second for `seconds`, each of a worker that has none."""
        free = deque(volunteers)
        async with asyncio.TaskGroup() as tasks:
            async for due in self._arrivals(mix.leases, seconds):
                if not free:
                    measures.failed("lease", "every worker is busy: use more workers")
                    continue
                tasks.create_task(self._lease(measures, free, mix, due=due))

    async def _lease(
        self, measures: Measures, free: deque[Volunteer], mix: Mix, *, due: float
    ) -> None:
        volunteer = free.popleft()
        volunteer.leasing = True
        held = await self.take(measures, volunteer, due=due)
        if held is not None:
            due = self.now() + mix.think_seconds
            await self._until(due)
            await self.progress(measures, volunteer, held, due=due)
            due = max(due, self.now()) + mix.think_seconds
            await self._until(due)
            submits = not volunteer.num_submitted and self.rng.random() < mix.submit_share
            await self.end(measures, volunteer, held, submits=submits, due=due)
        volunteer.leasing = False
        free.append(volunteer)

    async def _arrivals(self, rate: float, seconds: float) -> AsyncIterator[float]:
        """Times at which something is due, at random with `rate` a second on average."""
        if rate <= 0:
            return
        start = due = self.now()
        while (due := due + self.rng.expovariate(rate)) < start + seconds:
            await self._until(due)
            yield due

    async def _until(self, due: float) -> None:
        if (wait := due - self.now()) > 0:
            await asyncio.sleep(wait)
            self.lateness.append(self.now() - due)


async def side_by_side(
    calls: Sequence[Callable[[], Awaitable[object]]], *, concurrency: int = 16
) -> None:
    """All `calls`, `concurrency` at a time: the next begins when one has ended."""
    waiting = deque(calls)

    async def work() -> None:
        while waiting:
            await waiting.popleft()()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work())
