"""Open work by kind and size, so that the largest piece below a limit is found without a search.

A shelf holds one kind. Its pieces lie in bins of similar size (8 an octave), sorted within each:
to put, drop or find one costs a few binary searches in short lists.
"""

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.kinds import Kinds
from coordinator.scheduling.values import Work

_BINS_PER_OCTAVE = 8
_NUM_BINS = 96 * _BINS_PER_OCTAVE
_AFTER_ANY_NAME = "\U0010ffff"

Piece = tuple[float, str]
"""FLOPs and assignment."""


def size_bin(flops: float) -> int:
    """The bin of a size in FLOPs; all below 1 share the first, all above 2**95 the last."""
    if flops < 1.0:
        return 0
    return int(min(1.0 + math.log2(flops) * _BINS_PER_OCTAVE, _NUM_BINS - 1.0))


class Shelf:
    """Open pieces of one kind."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self._bins: dict[int, list[Piece]] = {}
        self._order: list[int] = []
        self._totals: dict[int, int] = {}
        self._by_input: dict[str, list[Piece]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def put(self, work: Work) -> tuple[int, float, float]:
        """Returns the bin, and the FLOPs of all and of the largest of its pieces."""
        piece, number = (work.flops, work.assignment), size_bin(work.flops)
        if number not in self._bins:
            self._bins[number] = []
            self._totals[number] = 0
            insort(self._order, number)
        insort(self._bins[number], piece)
        self._totals[number] += round(work.flops)
        for digest in work.inputs:
            insort(self._by_input.setdefault(digest, []), piece)
        return number, max(1.0, float(self._totals[number])), self._bins[number][-1][0]

    def drop(self, work: Work) -> tuple[int, float, float]:
        """As `put`; an empty bin has 0 FLOPs and -1 as its largest."""
        piece, number = (work.flops, work.assignment), size_bin(work.flops)
        for digest in work.inputs:
            _remove(self._by_input[digest], piece)
            if not self._by_input[digest]:
                del self._by_input[digest]
        _remove(self._bins[number], piece)
        self._totals[number] -= round(work.flops)
        if self._bins[number]:
            return number, max(1.0, float(self._totals[number])), self._bins[number][-1][0]
        del self._bins[number], self._totals[number]
        self._order.remove(number)
        return number, 0.0, -1.0

    def descending(self, limit: float) -> Iterator[Piece]:
        """Pieces of at most `limit` FLOPs, the largest first."""
        for number in reversed(self._order[: bisect_right(self._order, size_bin(limit))]):
            pieces = self._bins[number]
            for place in reversed(range(bisect_right(pieces, (limit, _AFTER_ANY_NAME)))):
                yield pieces[place]

    def ascending(self, limit: float) -> Iterator[Piece]:
        """Pieces of at most `limit` FLOPs, the smallest first."""
        for number in self._order:
            for piece in self._bins[number]:
                if piece[0] > limit:
                    return
                yield piece

    def with_input(self, digest: str, limit: float) -> Iterator[Piece]:
        """Pieces of at most `limit` FLOPs that start from this blob, the largest first."""
        pieces = self._by_input.get(digest, [])
        for place in reversed(range(bisect_right(pieces, (limit, _AFTER_ANY_NAME)))):
            yield pieces[place]


class Shelves:
    """All open work. What may not be offered yet lies apart until its time has come."""

    def __init__(self, kinds: Kinds) -> None:
        self.work: dict[str, Work] = {}
        self.special: dict[str, Work] = {}
        """Work with a history: some workers are excluded from it, or ran out of memory on it."""
        self.shelves: list[Shelf] = []
        self._kinds = kinds
        self._now = 0.0
        self._paused: list[tuple[float, str]] = []
        self._on_shelf: dict[str, Shelf] = {}
        self._curves: dict[str, dict[str, Work]] = {}
        self._totals: NDArray[np.float64] = np.zeros((0, _NUM_BINS))
        self._largest: NDArray[np.float64] = np.zeros((0, _NUM_BINS))

    def put(self, work: Work) -> None:
        """Adds work; what had the same name before is replaced."""
        self.drop(work.assignment)
        self.work[work.assignment] = work
        if work.excluded or work.ran_out:
            self.special[work.assignment] = work
        if work.curve:
            self._curves.setdefault(work.curve, {})[work.assignment] = work
        self._grow(self._kinds.number(work))
        if work.not_before <= self._now:
            self._set_out(work)
        else:
            heapq.heappush(self._paused, (work.not_before, work.assignment))

    def drop(self, assignment: str) -> bool:
        """Forgets work; False where there was none of this name."""
        work = self.work.pop(assignment, None)
        if work is None:
            return False
        self.special.pop(assignment, None)
        curve = self._curves.get(work.curve, {})
        curve.pop(assignment, None)
        if not curve:
            self._curves.pop(work.curve, None)
        shelf = self._on_shelf.pop(assignment, None)
        if shelf is not None:
            self._note(shelf.kind, shelf.drop(work))
        return True

    def shorter(self, work: Work) -> list[Work]:
        """What may be offered of the work's curve and ends earlier, the shortest first."""
        found = [
            one
            for name, one in self._curves.get(work.curve, {}).items()
            if name in self._on_shelf and one.num_steps < work.num_steps
        ]
        return sorted(found, key=lambda one: (one.num_steps, one.assignment))

    def unpause(self, now: float) -> bool:
        """Puts on the shelves what may be offered by now; whether that was anything."""
        found, self._now = False, now
        while self._paused and self._paused[0][0] <= now:
            _, assignment = heapq.heappop(self._paused)
            work = self.work.get(assignment)
            if work is None or assignment in self._on_shelf or work.not_before > now:
                continue
            self._set_out(work)
            found = True
        return found

    def kind_of(self, work: Work) -> int:
        """The number of the kind of some work that was put."""
        return self._kinds.number(work)

    def demand(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sizes [sizes], ascending: the largest piece of each bin; and FLOPs [kinds, sizes].

        What is as good as done counts as a FLOP, so that it does not go unnoticed.
        """
        self._grow(len(self._kinds) - 1)
        used = np.flatnonzero((self._largest >= 0.0).any(axis=0))
        return self._largest[:, used].max(axis=0, initial=-1.0), self._totals[:, used]

    def _set_out(self, work: Work) -> None:
        shelf = self._on_shelf[work.assignment] = self.shelves[self._kinds.number(work)]
        self._note(shelf.kind, shelf.put(work))

    def _grow(self, kind: int) -> None:
        while len(self.shelves) <= kind:
            self.shelves.append(Shelf(len(self.shelves)))
        more = len(self.shelves) - len(self._totals)
        if more > 0:
            self._totals = np.vstack([self._totals, np.zeros((more, _NUM_BINS))])
            self._largest = np.vstack([self._largest, np.full((more, _NUM_BINS), -1.0)])

    def _note(self, kind: int, change: tuple[int, float, float]) -> None:
        number, total, largest = change
        self._totals[kind, number] = total
        self._largest[kind, number] = largest


def _remove(pieces: list[Piece], piece: Piece) -> None:
    del pieces[bisect_left(pieces, piece)]
