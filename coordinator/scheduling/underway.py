"""Work in progress as arrays: when it is expected to end, and what is worth a backup."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.kinds import Kinds
from coordinator.scheduling.roster import Floats, expected
from coordinator.scheduling.values import Running


class Underway:
    """Running assignments by slot."""

    def __init__(self, kinds: Kinds) -> None:
        self.running: dict[str, Running] = {}
        self._kinds = kinds
        self._slots: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._numbers: Floats = np.zeros((3, 0))
        self._kind: NDArray[np.int64] = np.zeros(0, np.int64)
        self._single: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._of_worker: dict[str, set[str]] = {}

    def put(self, running: Running) -> str | None:
        """Adds or replaces; returns the worker that held it before, where it is another one."""
        name = running.work.assignment
        before = self.running.get(name)
        if before is not None and before.worker != running.worker:
            self._release(before)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._take_slot(name)
        self.running[name] = running
        self._of_worker.setdefault(running.worker, set()).add(name)
        self._numbers[:, slot] = (running.finish, running.stalls_at, running.work.flops)
        self._kind[slot] = self._kinds.number(running.work)
        self._single[slot] = running.backup_of is None and not running.backed_up
        return None if before is None or before.worker == running.worker else before.worker

    def drop(self, assignment: str) -> str | None:
        """Forgets it; returns the worker that held it, None where it was not known."""
        slot = self._slots.pop(assignment, None)
        if slot is None:
            return None
        running = self.running.pop(assignment)
        self._release(running)
        self._single[slot] = False
        self._free.append(slot)
        return running.worker

    def longest_of(self, worker: str) -> Running | None:
        """What a worker is busy with for longest."""
        held = [self.running[name] for name in self._of_worker.get(worker, ())]
        return max(held, key=lambda held: (held.finish, held.work.assignment), default=None)

    def late(
        self, kinds: NDArray[np.bool_], *, speed: float, gain: float, margin: float, now: float
    ) -> list[Running]:
        """What a worker of `speed` FLOP/s that can take `kinds` would end clearly sooner.

        Clearly: `gain` times as fast as what its holder still needs, and `margin` seconds before
        it. The latest first; only what has no backup and is none.
        """
        count = len(self._names)
        if not count or not kinds.any():
            return []
        finish, stalls_at, flops = self._numbers[:, :count]
        ends = expected(finish, stalls_at, now)
        mine = flops / speed
        sooner = (mine * gain <= ends - now) & (mine + margin <= ends - now)
        slots = np.flatnonzero(self._single[:count] & kinds[self._kind[:count]] & sooner)
        found = [(float(ends[slot]), self._names[slot]) for slot in slots]
        return [self.running[name] for _, name in sorted(found, reverse=True)]

    def behind(self, targets: Sequence[float], now: float) -> dict[int, list[Running]]:
        """What is expected to end after the target of its kind, by kind, the largest first.

        Only what has no backup and is none. `targets` [kinds] are absolute.
        """
        count = len(self._names)
        if not count or not targets:
            return {}
        finish, stalls_at, flops = self._numbers[:, :count]
        kinds = self._kind[:count]
        after = expected(finish, stalls_at, now) > np.array(targets)[kinds]
        found: dict[int, list[Running]] = {}
        slots = np.flatnonzero(self._single[:count] & after)
        order = sorted(((float(flops[slot]), self._names[slot]) for slot in slots), reverse=True)
        for _, name in order:
            found.setdefault(int(kinds[self._slots[name]]), []).append(self.running[name])
        return found

    def end(self, running: Running, now: float) -> float:
        """When it is expected to end."""
        return float(expected(np.array([running.finish]), running.stalls_at, now)[0])

    def last_end(self, now: float) -> float:
        """When the last of all is expected to end; of two twins the sooner counts."""
        ends: dict[str, float] = {}
        for name, running in self.running.items():
            original, end = running.backup_of or name, self.end(running, now)
            ends[original] = min(end, ends.get(original, end))
        return max(ends.values(), default=now)

    def _release(self, running: Running) -> None:
        held = self._of_worker[running.worker]
        held.discard(running.work.assignment)
        if not held:
            del self._of_worker[running.worker]

    def _take_slot(self, name: str) -> int:
        if self._free:
            slot = self._free.pop()
            self._names[slot] = name
        else:
            slot = len(self._names)
            self._names.append(name)
            if slot >= len(self._kind):
                more = max(64, slot)
                self._numbers = np.hstack([self._numbers, np.zeros((3, more))])
                self._kind = np.hstack([self._kind, np.zeros(more, np.int64)])
                self._single = np.hstack([self._single, np.zeros(more, np.bool_)])
        self._slots[name] = slot
        return slot
