"""The target finish: the smallest time by which all open work fits the workers.

Dual approximation (Hochbaum & Shmoys 1987; for machines of unlike speed 1988): instead of building
a schedule, guess its end T and ask whether the work fits below it. The answer here is a necessary
condition, not a packing. For every kind of work k and every size a that occurs, with S the kinds
whose workers can all take k as well: the pieces of S of at least a FLOPs must fit the workers that
can take k and have room for one whole piece of a FLOPs before T,

    sum of work(S, >= a)  <=  sum of the rooms speed * (T - free_at) that are at least a

Where machines differ by memory alone the kinds are nested, and for a = 0 this is the exact
condition for divisible work (Hall's); the sizes bring in that pieces are whole. A worker whose room
is smaller than the smallest open piece counts for nothing, so that T moves on when it must.

The kinds S that hold T up occupy all their workers until then; the other kinds are measured without
these workers, and get an earlier target (the decomposition of Megiddo 1974 and Fujishige 1980 for
lexicographically optimal flows). So one kind that few can take does not make the rest dawdle.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.roster import Floats

_STEPS_PER_E = 512
_MIN_STEP, _MAX_STEP = -8 * _STEPS_PER_E, 32 * _STEPS_PER_E
_ROUNDING = 1e-9
_MAX_LEVELS = 4


@dataclass(frozen=True)
class Demand:
    """Open work: `sizes` [sizes] in FLOPs, ascending, and FLOPs `work` [kinds, sizes]."""

    sizes: Floats
    work: Floats


@dataclass(frozen=True)
class Supply:
    """The workers: FLOP/s, seconds and pattern [slots]; `table` [patterns, kinds]."""

    speed: Floats
    free_at: Floats
    until: Floats
    pattern: NDArray[np.int64]
    table: NDArray[np.bool_]


@dataclass(frozen=True)
class Target:
    """`at`: by when all open work fits; `by_kind` [kinds]: by when that of each kind does,
    `at` where none of it is open.

    `steps` are the places of the different targets on the grid, the latest first. `capacity`
    [kinds][sizes]: FLOPs until the target of the workers that can take a piece of this kind and of
    the size in `sizes`: the smaller, the less flexible the piece. `impossible`: some open work is
    of a kind that nobody here can take.
    """

    at: float
    by_kind: list[float]
    steps: tuple[int, ...]
    sizes: list[float]
    capacity: list[list[float]]
    impossible: bool

    def flexibility(self, kind: int, flops: float) -> float:
        """FLOPs until the target of the workers that could take such a piece."""
        if not self.sizes:
            return math.inf
        return self.capacity[kind][min(bisect_left(self.sizes, flops), len(self.sizes) - 1)]


def find_target(
    demand: Demand, supply: Supply, *, now: float, near: tuple[int, ...] = ()
) -> Target:
    """The target on a grid of 1/512 (in logarithms of the seconds from now).

    `near`: steps to start from, such as those of the last target; the result does not depend on
    them.
    """
    active = np.bincount(supply.pattern[supply.speed > 0.0], minlength=len(supply.table))
    can = (supply.table & (active > 0)[:, None]).T
    open_kinds = demand.work.any(axis=1)
    possible: NDArray[np.bool_] = np.asarray(can.any(axis=1) & open_kinds, np.bool_)
    impossible = bool((open_kinds & ~possible).any())
    by_kind = np.full(len(can), now)
    capacity = np.full((len(can), len(demand.sizes)), math.inf)
    steps: list[int] = []
    while possible.any():
        level = _Level(demand, supply, can, possible, now)
        step = _smallest(level.fits, near[len(steps)] if len(steps) < len(near) else None)
        # The last level takes all that is left.
        held = level.holding(step - 1) if len(steps) < _MAX_LEVELS - 1 else possible
        by_kind[held] = now + _seconds(step)
        capacity[held] = level.room.capacity(_seconds(step))[held]
        can = can & ~can[held].any(axis=0)
        possible = possible & ~held
        # Others that lose all their workers to these wait for them as long.
        stranded = possible & ~can.any(axis=1)
        by_kind[stranded] = now + _seconds(step)
        possible = possible & ~stranded
        steps.append(step)
    end = float(by_kind.max(initial=now))
    # What is in progress is judged by the target of the whole where no more of its kind is open.
    able = (supply.table & (active > 0)[:, None]).T.astype(np.float64)
    everybody = _Room(demand.sizes, supply, able, now).capacity(end - now)
    by_kind[~open_kinds], capacity[~open_kinds] = end, everybody[~open_kinds]
    return Target(
        end,
        by_kind.tolist(),
        tuple(steps),
        demand.sizes.tolist(),
        capacity.tolist(),
        impossible,
    )


class _Level:
    """The kinds that are not measured yet, and the workers that are left for them."""

    def __init__(
        self,
        demand: Demand,
        supply: Supply,
        can: NDArray[np.bool_],
        possible: NDArray[np.bool_],
        now: float,
    ) -> None:
        # Kind j belongs to S of kind k if no pattern can take j but not k.
        inside = can.astype(np.float64) @ (~can).T.astype(np.float64) == 0.0
        self._within: NDArray[np.bool_] = inside & possible[:, None] & possible[None, :]
        work = np.where(possible[:, None], demand.work, 0.0)
        need = np.cumsum((self._within.T.astype(np.float64) @ work)[:, ::-1], axis=1)[:, ::-1]
        self.room = _Room(demand.sizes, supply, can.astype(np.float64), now)
        most = self.room.capacity(_seconds(_MAX_STEP))
        self._need = np.where(need <= most, need, 0.0) * (1.0 - _ROUNDING)
        self._possible = possible

    def fits(self, step: int) -> bool:
        """Whether all work fits by then."""
        return bool((self.room.capacity(_seconds(step)) >= self._need).all())

    def holding(self, step: int) -> NDArray[np.bool_]:
        """The kinds [kinds] whose work does not fit by then; all where it does."""
        short = (self.room.capacity(_seconds(step)) < self._need).any(axis=1)
        held: NDArray[np.bool_] = np.asarray(self._within[:, short].any(axis=1), np.bool_)
        return held if held.any() else self._possible


class _Room:
    """How much of which sizes fits the workers before a time."""

    def __init__(self, sizes: Floats, supply: Supply, can: Floats, now: float) -> None:
        useful = supply.speed > 0.0
        self._sizes, self._can = sizes * (1.0 - _ROUNDING), can
        self._speed = supply.speed[useful]
        self._start = np.maximum(supply.free_at[useful], now) - now
        self._stay = supply.until[useful] - now
        self._cell = supply.pattern[useful] * (len(sizes) + 1)
        self._shape = (can.shape[1], len(sizes) + 1)

    def capacity(self, horizon: float) -> Floats:
        """FLOPs [kinds, sizes] of those with room for a whole piece of the size.

        How long a worker stays limits its pieces, not what it counts for: when it goes, somebody
        else will have come, or it comes back.
        """
        room = self._speed * np.maximum(horizon - self._start, 0.0)
        whole = self._speed * np.maximum(np.minimum(horizon, self._stay) - self._start, 0.0)
        place = np.searchsorted(self._sizes, whole, side="right")
        count = self._shape[0] * self._shape[1]
        cells = np.bincount(self._cell + place, weights=room, minlength=count)
        per_pattern = cells.reshape(self._shape)[:, ::-1].cumsum(axis=1)[:, ::-1]
        capacity: Floats = self._can @ per_pattern[:, 1:]
        return capacity


def _seconds(step: int) -> float:
    return math.exp(step / _STEPS_PER_E)


def _smallest(fits: Callable[[int], bool], near: int | None) -> int:
    """The smallest step that fits, by doubling steps away from `near` and then halving."""
    high = min(max(near or 0, _MIN_STEP), _MAX_STEP)
    stride = 2
    while high < _MAX_STEP and not fits(high):
        high, stride = min(high + stride, _MAX_STEP), 2 * stride
    low, stride = high - 2, 2
    while low > _MIN_STEP and fits(low):
        high, low, stride = low, max(low - stride, _MIN_STEP), 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
