"""Work in progress as arrays: when it is expected to end, and what is worth a backup."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.kinds import Kinds
from coordinator.scheduling.roster import Floats, expected
from coordinator.scheduling.values import Running

LATE = 1.25
"""Work is well behind when what its holder still needs is this many times what there is time for:
predictions err by some per cent, and what ends a little late is backed up by who is idle then."""


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
        self._original: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._backup: NDArray[np.int64] = np.zeros(0, np.int64)
        self.backups: dict[str, str] = {}
        """Original to backup, of those backups that are in progress."""
        self._of_seat: dict[str, set[str]] = {}

    def put(self, running: Running) -> str | None:
        """Adds or replaces; returns the seat that held it before, where it is another one."""
        name = running.work.assignment
        before = self.running.get(name)
        if before is not None and before.seat != running.seat:
            self._release(before)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._take_slot(name)
        self.running[name] = running
        self._of_seat.setdefault(running.seat, set()).add(name)
        self._numbers[:, slot] = (running.finish, running.stalls_at, running.work.flops)
        self._kind[slot] = self._kinds.number(running.work)
        if running.backup_of is not None:
            self.backups[running.backup_of] = name
        self._pair(running.backup_of or name)
        self._pair(name)
        return None if before is None or before.seat == running.seat else before.seat

    def drop(self, assignment: str) -> str | None:
        """Forgets it; returns the seat that held it, None where it was not known."""
        slot = self._slots.pop(assignment, None)
        if slot is None:
            return None
        running = self.running.pop(assignment)
        self._release(running)
        self._original[slot] = False
        self._free.append(slot)
        if running.backup_of is not None and self.backups.get(running.backup_of) == assignment:
            del self.backups[running.backup_of]
            self._pair(running.backup_of)
        return running.seat

    def longest_of(self, seat: str) -> Running | None:
        """What a seat is busy with for longest."""
        held = [self.running[name] for name in self._of_seat.get(seat, ())]
        return max(held, key=lambda held: (held.finish, held.work.assignment), default=None)

    def late(
        self, kinds: NDArray[np.bool_], *, speed: float, gain: float, margin: float, now: float
    ) -> list[Running]:
        """What a worker of `speed` FLOP/s that can take `kinds` would end clearly sooner.

        Clearly: `gain` times as fast as what its holder still needs, and `margin` seconds before
        it. The latest first. With a backup in progress the sooner of the two counts.
        """
        count = len(self._names)
        if not count or not kinds.any():
            return []
        flops, ends = self._numbers[2, :count], self._ends(now)
        mine = flops / speed
        sooner = (mine * gain <= ends - now) & (mine + margin <= ends - now)
        slots = np.flatnonzero(self._original[:count] & kinds[self._kind[:count]] & sooner)
        found = [(float(ends[slot]), self._names[slot]) for slot in slots]
        return [self.running[name] for _, name in sorted(found, reverse=True)]

    def behind(self, targets: Sequence[float], now: float) -> dict[int, list[Running]]:
        """What is expected to end well after the target of its kind, by kind, the largest first.

        With a backup in progress the sooner of the two counts. `targets` [kinds] are absolute.
        """
        count = len(self._names)
        if not count or max(targets, default=now) <= now:
            return {}
        flops = self._numbers[2, :count]
        kinds = self._kind[:count]
        due = now + LATE * (np.array(targets)[kinds] - now)
        after = (self._ends(now) > due) & (due > now)
        found: dict[int, list[Running]] = {}
        slots = np.flatnonzero(self._original[:count] & after)
        order = sorted(((float(flops[slot]), self._names[slot]) for slot in slots), reverse=True)
        for _, name in order:
            found.setdefault(int(kinds[self._slots[name]]), []).append(self.running[name])
        return found

    def is_current(self, running: Running) -> bool:
        """Whether nothing has changed about it since, and it may have a (better) backup."""
        name = running.work.assignment
        return self.running.get(name) is running and bool(self._original[self._slots[name]])

    def workers_of(self, running: Running) -> set[str]:
        """Its holder, and that of its backup."""
        backup = self.backups.get(running.work.assignment)
        return {running.worker} if backup is None else {running.worker, self.running[backup].worker}

    def end(self, running: Running, now: float) -> float:
        """When it is expected to end, or its backup where that is sooner."""
        backup = self.backups.get(running.work.assignment)
        both = [running] if backup is None else [running, self.running[backup]]
        return min(float(expected(np.array([r.finish]), r.stalls_at, now)[0]) for r in both)

    def last_end(self, now: float) -> float:
        """When the last of all is expected to end; of two twins the sooner counts."""
        ends: dict[str, float] = {}
        for name, running in self.running.items():
            original, end = running.backup_of or name, self.end(running, now)
            ends[original] = min(end, ends.get(original, end))
        return max(ends.values(), default=now)

    def _ends(self, now: float) -> Floats:
        finish, stalls_at, _ = self._numbers[:, : len(self._names)]
        ends = expected(finish, stalls_at, now)
        backup = self._backup[: len(self._names)]
        return np.where(backup >= 0, np.minimum(ends, ends[backup]), ends)

    def _pair(self, name: str) -> None:
        if name not in self._slots:
            return
        # Backed up without a backup in progress: that one was handed in and waits to be judged.
        slot, running, backup = self._slots[name], self.running[name], self.backups.get(name)
        self._backup[slot] = -1 if backup is None else self._slots[backup]
        self._original[slot] = running.backup_of is None and (
            backup is not None or not running.backed_up
        )

    def _release(self, running: Running) -> None:
        held = self._of_seat[running.seat]
        held.discard(running.work.assignment)
        if not held:
            del self._of_seat[running.seat]

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
                self._original = np.hstack([self._original, np.zeros(more, np.bool_)])
                self._backup = np.hstack([self._backup, np.full(more, -1)])
        self._slots[name] = slot
        return slot
