"""The workers' devices as arrays: what each can take, how fast, and from when on."""

import math

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.kinds import Kinds
from coordinator.scheduling.values import Candidate, Running

Floats = NDArray[np.float64]

CLAIM_FACTOR = 10.0
"""Of an unproven worker's speed no more counts than this times the median of all. It leaves room
between common hardware and the fastest (some 8 times), and makes one liar count as ten workers."""


def expected(finish: Floats, stalls_at: Floats | float, now: float) -> Floats:
    """When something is expected to end that was to end at `finish`.

    Past `stalls_at` every second without a sign costs two: one passed idly, one of doubt. What is
    overdue is expected as much later as it is overdue, so nobody is waited for for ever.
    """
    later = finish + 2.0 * np.maximum(0.0, now - stalls_at)
    ends: Floats = np.where(later >= now, later, 2.0 * now - later)
    return ends


class Roster:
    """Seats by slot; a pattern is the set of kinds that a machine can take."""

    def __init__(self, kinds: Kinds) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.slots: dict[str, int] = {}
        self.names: list[str] = []
        self.seats_of: dict[str, set[str]] = {}
        """The seats here of each worker."""
        self._kinds = kinds
        self._free: list[int] = []
        self._numbers: Floats = np.zeros((5, 0))
        self._flags: NDArray[np.bool_] = np.zeros((2, 0), np.bool_)
        self._pattern: NDArray[np.int64] = np.zeros(0, np.int64)
        self._patterns: dict[bytes, int] = {}
        self._rows: list[NDArray[np.bool_]] = []
        self._table: NDArray[np.bool_] = np.zeros((0, 0), np.bool_)
        self._num_kinds = 0
        self.speed_limit = math.inf

    def put(self, candidate: Candidate) -> None:
        """Adds a seat, or replaces what was known of it; its running work stays."""
        seat = candidate.seat
        slot = self.slots.get(seat)
        if slot is None:
            slot = self._take_slot(seat)
            self.seats_of.setdefault(candidate.worker, set()).add(seat)
        self.candidates[seat] = candidate
        until = candidate.available_until
        self._numbers[:3, slot] = (
            candidate.speed,
            candidate.busy_until,
            math.inf if until is None else until,
        )
        self._flags[:, slot] = (True, candidate.proven)
        self._pattern[slot] = self._pattern_of(candidate)

    def drop(self, seat: str) -> bool:
        """Forgets a seat; False where it was not known."""
        slot = self.slots.pop(seat, None)
        if slot is None:
            return False
        worker = self.candidates.pop(seat).worker
        self.seats_of[worker].discard(seat)
        if not self.seats_of[worker]:
            del self.seats_of[worker]
        self._flags[0, slot] = False
        self._free.append(slot)
        return True

    def set_running(self, seat: str, running: Running | None) -> None:
        """What a known seat is busy with besides what its candidate says."""
        slot = self.slots.get(seat)
        if slot is not None:
            self._numbers[3:, slot] = (
                (-math.inf, math.inf) if running is None else (running.finish, running.stalls_at)
            )

    def refresh(self) -> None:
        """Brings up to date what depends on all workers: patterns and the limit for claims."""
        if self._num_kinds != len(self._kinds):
            self._num_kinds = len(self._kinds)
            self._patterns, self._rows = {}, []
            for seat, slot in self.slots.items():
                self._pattern[slot] = self._pattern_of(self.candidates[seat])
        if len(self._table) != len(self._rows) or self._table.shape[1:] != (self._num_kinds,):
            self._table = np.array(self._rows, np.bool_).reshape(len(self._rows), self._num_kinds)
        speeds = self._numbers[0, : len(self.names)][self._flags[0, : len(self.names)]]
        middle = (len(speeds) - 1) // 2
        self.speed_limit = (
            CLAIM_FACTOR * float(np.partition(speeds, middle)[middle]) if len(speeds) else math.inf
        )

    @property
    def stale(self) -> bool:
        """Whether a kind of work has appeared that no worker was matched with yet."""
        return self._num_kinds != len(self._kinds)

    def speed(self, candidate: Candidate) -> float:
        """FLOP/s that count: all of a proven worker's, the plausible part of another's claim."""
        return candidate.speed if candidate.proven else min(candidate.speed, self.speed_limit)

    def speeds(self) -> Floats:
        """FLOP/s that count [slots]; 0 in an empty slot."""
        count = len(self.names)
        told = self._numbers[0, :count]
        counts = np.where(self._flags[1, :count], told, np.minimum(told, self.speed_limit))
        return np.where(self._flags[0, :count], counts, 0.0)

    def free_at(self, now: float) -> Floats:
        """When each is expected to be free [slots]."""
        _, busy, _, finish, stalls_at = self._numbers[:, : len(self.names)]
        idle = expected(busy, math.inf, now)
        running = np.where(finish > -math.inf, expected(finish, stalls_at, now), -math.inf)
        return np.maximum(idle, running)

    def until(self) -> Floats:
        """Until when each expects to stay [slots]."""
        return self._numbers[2, : len(self.names)]

    def patterns(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The pattern of each [slots], and which kinds each pattern can take [patterns, kinds]."""
        return self._pattern[: len(self.names)], self._table

    def can_take(self, kind: int) -> NDArray[np.bool_]:
        """Who could take a kind of work [slots]."""
        if not self._rows:
            return np.zeros(len(self.names), np.bool_)
        present = self._flags[0, : len(self.names)]
        able: NDArray[np.bool_] = present & self._table[self._pattern[: len(self.names)], kind]
        return able

    def kinds_for(self, seat: str) -> NDArray[np.bool_]:
        """Which kinds a seat can take [kinds]."""
        return self._rows[int(self._pattern[self.slots[seat]])]

    def _take_slot(self, seat: str) -> int:
        if self._free:
            slot = self._free.pop()
            self.names[slot] = seat
        else:
            slot = len(self.names)
            self.names.append(seat)
            if slot >= len(self._pattern):
                more = max(64, slot)
                self._numbers = np.hstack([self._numbers, np.zeros((5, more))])
                self._flags = np.hstack([self._flags, np.zeros((2, more), np.bool_)])
                self._pattern = np.hstack([self._pattern, np.zeros(more, np.int64)])
        self.slots[seat] = slot
        self._numbers[3:, slot] = (-math.inf, math.inf)
        return slot

    def _pattern_of(self, candidate: Candidate) -> int:
        if self._num_kinds != len(self._kinds):
            return 0
        row = self._kinds.open_to(candidate)
        number = self._patterns.setdefault(row.tobytes(), len(self._rows))
        if number == len(self._rows):
            self._rows.append(row)
        return number
