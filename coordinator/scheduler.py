"""Which open assignment a worker gets, or why it gets none. Pure.

Greedy list scheduling over all workers that could take work: the largest remaining work first,
each to the worker that would finish it soonest. It aims at an early end of the whole, not at a
short wait of one worker: a slow worker waits while a busy one would still finish the work sooner.
It is not optimal, and the usual bound for such schedules holds for equal workers only.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from protocol.capability import Capability, Device


@dataclass(frozen=True, kw_only=True)
class Work:
    """An open assignment. FLOPs are what is left of it, memory is for each device in bytes.

    `ran_out` maps a worker to the free memory in bytes with which it ran out of it on this work.
    """

    assignment: str
    words: str
    flops: float
    memory_bytes: Mapping[Device, int]
    disk_bytes: int
    needs_trust: bool = False
    excluded: frozenset[str] = frozenset()
    ran_out: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A worker that works or waits for work, and when it is expected to be free."""

    worker: str
    capability: Capability
    busy_until: float
    trusted: bool = True


@dataclass(frozen=True)
class Choice:
    """The work for the asking worker, and why."""

    assignment: str
    reason: str


@dataclass(frozen=True)
class NoWork:
    """Why the asking worker gets nothing now; `waits`: because others would end it sooner."""

    reason: str
    waits: bool = False


@dataclass(frozen=True)
class Slot:
    """One line of the schedule: who is expected to finish what when, and the next best finish."""

    work: Work
    worker: str
    finish: float
    runner_up: float | None


@dataclass(frozen=True)
class Schedule:
    """Slots by decreasing work, the work that nobody can take, and when each worker is free."""

    slots: tuple[Slot, ...]
    impossible: tuple[Work, ...]
    busy_until: Mapping[str, float]


@dataclass(frozen=True)
class Obstacle:
    """Why a worker cannot take some work; `lack` is the missing share of what it has, 0 or more."""

    words: str
    lack: float


def find_obstacle(work: Work, candidate: Candidate) -> Obstacle | None:
    """The first requirement that the worker does not meet, and by how much."""
    offered = candidate.capability
    memory = work.memory_bytes[offered.device]
    if candidate.worker in work.excluded:
        return Obstacle("your earlier work on it was not accepted", float("inf"))
    if work.needs_trust and not candidate.trusted:
        return Obstacle("it is for workers that the operator marked trusted", float("inf"))
    if offered.free_memory_bytes < memory:
        return _lack("memory", memory, offered.free_memory_bytes)
    if offered.free_disk_bytes < work.disk_bytes:
        return _lack("disk", work.disk_bytes, offered.free_disk_bytes)
    ran_out = (work.ran_out or {}).get(candidate.worker)
    if ran_out is not None and offered.free_memory_bytes <= ran_out:
        return Obstacle(
            f"it ran out of memory here with {_bytes(ran_out)}, "
            f"you have {_bytes(offered.free_memory_bytes)}",
            0.0,
        )
    return None


def make_schedule(work: Iterable[Work], candidates: Sequence[Candidate], *, now: float) -> Schedule:
    """Largest remaining FLOPs first, each to the worker that would finish it soonest."""
    busy = {candidate.worker: max(candidate.busy_until, now) for candidate in candidates}
    slots: list[Slot] = []
    impossible: list[Work] = []
    for item in sorted(work, key=lambda item: (-item.flops, item.assignment)):
        finishes = sorted(
            (
                busy[candidate.worker] + item.flops / candidate.capability.flops_per_second,
                candidate.worker,
            )
            for candidate in candidates
            if find_obstacle(item, candidate) is None
        )
        if not finishes:
            impossible.append(item)
            continue
        finish, worker = finishes[0]
        busy[worker] = finish
        slots.append(Slot(item, worker, finish, finishes[1][0] if len(finishes) > 1 else None))
    return Schedule(tuple(slots), tuple(impossible), busy)


def choose(
    work: Sequence[Work],
    candidates: Sequence[Candidate],
    *,
    asking: str,
    now: float,
    waits_until: float = math.inf,
) -> Choice | NoWork:
    """The asking worker's first slot in the schedule, or why it has none.

    What others say of their speed is taken on trust only so long: from `waits_until` on, the asking
    worker gets the work that it would delay least even where another one is expected to end it
    sooner.

    `candidates` must hold the asking worker. Raises ValueError otherwise.
    """
    me = next((candidate for candidate in candidates if candidate.worker == asking), None)
    if me is None:
        raise ValueError(f"asking {asking!r}: expected one of the candidates")
    if not work:
        return NoWork("no assignment is open now")
    schedule = make_schedule(work, candidates, now=now)
    for slot in schedule.slots:
        if slot.worker == asking:
            return Choice(slot.work.assignment, _why(slot, me, now))
    others = [slot for slot in schedule.slots if find_obstacle(slot.work, me) is None]
    if others:
        if now >= waits_until:
            return _out_of_patience(others, me, now)
        slot = min(others, key=attrgetter("finish"))
        mine = max(me.busy_until, now) + slot.work.flops / me.capability.flops_per_second
        return NoWork(
            f"{slot.work.words}: worker {_short(slot.worker)} is expected to finish it sooner "
            f"({slot.finish - now:.0f} s; you {mine - now:.0f} s)",
            waits=True,
        )
    return _nothing_fits(work, me)


def expected_end(schedule: Schedule, *, now: float) -> float | None:
    """When all scheduled and running work is expected to end; None if some of it cannot be done."""
    if schedule.impossible:
        return None
    return max([now, *schedule.busy_until.values()])


def _out_of_patience(slots: Sequence[Slot], me: Candidate, now: float) -> Choice:
    start = max(me.busy_until, now)
    speed = me.capability.flops_per_second
    slot = min(slots, key=lambda slot: start + slot.work.flops / speed - slot.finish)
    mine = start + slot.work.flops / speed
    return Choice(
        slot.work.assignment,
        f"{slot.work.words}: you waited long enough for worker {_short(slot.worker)} "
        f"({slot.finish - now:.0f} s; you {mine - now:.0f} s)",
    )


def _nothing_fits(work: Sequence[Work], me: Candidate) -> NoWork:
    obstacles = [
        (found.lack, -item.flops, item, found)
        for item in work
        if (found := find_obstacle(item, me)) is not None
    ]
    _, _, nearest, obstacle = min(obstacles, key=lambda row: (row[0], row[1], row[2].assignment))
    return NoWork(f"{nearest.words}: {obstacle.words}")


def _why(slot: Slot, me: Candidate, now: float) -> str:
    needed = slot.work.memory_bytes[me.capability.device]
    other = (
        "no other worker here can take it"
        if slot.runner_up is None
        else f"next best worker {slot.runner_up - now:.0f} s"
    )
    return (
        f"{slot.work.words}: needs {_bytes(needed)}, you offer "
        f"{_bytes(me.capability.free_memory_bytes)}; you finish it soonest "
        f"({slot.finish - now:.0f} s; {other})"
    )


def _lack(what: str, needed: int, held: int) -> Obstacle:
    return Obstacle(
        f"needs {_bytes(needed)} free {what}, you have {_bytes(held)}",
        (needed - held) / max(held, 1),
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _short(worker: str) -> str:
    return worker[-6:]
