"""What no schedule can beat: lower bounds of the makespan, knowing every machine's real speed.

Only training counts: transfers, verification, heartbeats and stalls are free, and a piece may move
between machines at no cost. So the bounds hold for any scheduler, with or without backups and
resumed checkpoints; the ratio to them is an upper bound of the ratio to the optimum.

- Area with nested eligibility: for every kind of work, the work that only machines able to take
  that kind can do, over the FLOPs of these machines. A machine provides its real speed from when it
  joins to when it leaves: under churn the bound is the smallest time by which the capacity that was
  really present adds up to the work. For a machine that leaves with a piece unfinished it counts
  every second, although what follows its last durable checkpoint is lost to any scheduler.
- Longest job: the largest piece of a kind on the fastest machine able to take it that ever comes.
- LP (without churn): the preemptive relaxation of Lawler & Labetoulle 1978, variables t[type,
  machine] in seconds, minimise T with all work done, no machine and no piece busy for more than T.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.pieces import Piece, Type

MAX_VARIABLES = 40_000
"""HiGHS takes some seconds for as many."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """Seconds; `linear` is None where the LP was too large or machines come and go."""

    area: float
    longest: float
    linear: float | None

    @property
    def best(self) -> float:
        """The largest of them: the best bound."""
        return max(self.area, self.longest, self.linear or 0.0)


def find_bounds(pieces: list[Piece], fleet: list[Machine]) -> Bounds:
    """The bounds for all pieces on this fleet. Raises ValueError if a piece fits no machine."""
    counts: dict[Type, int] = {}
    for piece in pieces:
        counts[piece.type] = counts.get(piece.type, 0) + 1
    types = sorted(counts, key=lambda one: one.flops)
    flops = np.array([one.flops for one in types])
    numbers = np.array([counts[one] for one in types], np.float64)
    speed = np.array([machine.real_speed for machine in fleet])
    able = np.array([[_fits(one, machine) for machine in fleet] for one in types])
    if not able.any(axis=1).all():
        raise ValueError("a type of piece fits no machine: add workers or change the seed")
    stays = all(m.joins_at == 0.0 and m.leaves_at == math.inf for m in fleet)
    small = stays and able.size <= MAX_VARIABLES
    return Bounds(
        area=_area(flops * numbers, able, fleet),
        longest=float(max(size / speed[row].max() for size, row in zip(flops, able, strict=True))),
        linear=_linear(flops, numbers, able, speed) if small else None,
    )


def capacity(fleet: list[Machine], until: float) -> float:
    """FLOPs of all machines while they were there, up to a time."""
    return sum(
        machine.real_speed * max(0.0, min(until, machine.leaves_at) - machine.joins_at)
        for machine in fleet
    )


def _fits(one: Type, machine: Machine) -> bool:
    offered = machine.capability
    return (
        one.memory_bytes[offered.device] <= offered.free_memory_bytes
        and one.disk_bytes <= offered.free_disk_bytes
    )


def _area(work: Floats, able: NDArray[np.bool_], fleet: list[Machine]) -> float:
    rows = able.astype(np.float64)
    within = rows @ (1.0 - rows).T == 0.0
    times = [
        _smallest_time(float(work[within[:, number]].sum()), fleet, able[number])
        for number in range(len(work))
    ]
    anybody: NDArray[np.bool_] = np.asarray(able.any(axis=0), np.bool_)
    return max(*times, _smallest_time(float(work.sum()), fleet, anybody))


def _smallest_time(work: float, fleet: list[Machine], able: NDArray[np.bool_]) -> float:
    chosen = [machine for machine, fits in zip(fleet, able, strict=True) if fits]
    speed = np.array([machine.real_speed for machine in chosen])
    joins = np.array([machine.joins_at for machine in chosen])
    leaves = np.array([machine.leaves_at for machine in chosen])
    low, high = 0.0, 1.0
    while (speed * np.clip(np.minimum(high, leaves) - joins, 0.0, None)).sum() < work:
        low, high = high, 2.0 * high
        if high > 1e12:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        done = (speed * np.clip(np.minimum(middle, leaves) - joins, 0.0, None)).sum()
        low, high = (middle, high) if done < work else (low, middle)
    return low


def _linear(flops: Floats, numbers: Floats, able: NDArray[np.bool_], speed: Floats) -> float:
    kinds, machines = np.nonzero(able)
    count, (num_types, num_machines) = len(kinds), able.shape
    columns = np.arange(count)
    scale = float((flops * numbers).sum() / speed.sum())
    done = coo_array(
        (speed[machines] * scale / (flops * numbers)[kinds], (kinds, columns)),
        (num_types, count + 1),
    )
    rows = np.concatenate([kinds, num_types + machines])
    most = coo_array(
        (
            np.concatenate([np.ones(2 * count), -numbers, -np.ones(num_machines)]),
            (
                np.concatenate([rows, np.arange(num_types + num_machines)]),
                np.concatenate([columns, columns, np.full(num_types + num_machines, count)]),
            ),
        ),
        (num_types + num_machines, count + 1),
    )
    cost = np.zeros(count + 1)
    cost[-1] = 1.0
    answer = linprog(
        cost,
        A_ub=most.tocsr(),
        b_ub=np.zeros(num_types + num_machines),
        A_eq=done.tocsr(),
        b_eq=np.ones(num_types),
        method="highs",
    )
    if not answer.success:
        raise RuntimeError(f"HiGHS: {answer.message}")
    return float(answer.fun) * scale
