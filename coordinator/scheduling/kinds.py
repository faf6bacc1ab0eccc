"""Kinds of work: what it asks of a machine, each combination once.

A run has few of them (its widths, seeds and experts), however many assignments it has. What
concerns one worker alone (its history with an assignment, how long it stays) is no part of a kind.
"""

import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.values import DEVICES, Candidate, Work

Key = tuple[tuple[int, ...], int, bool]


class Kinds:
    """Numbers the kinds in the order in which they were first seen."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self._numbers: dict[Key, int] = {}
        self._memory: NDArray[np.int64] = np.zeros((0, len(DEVICES)), np.int64)
        self._disk: NDArray[np.int64] = np.zeros(0, np.int64)
        self._trust: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self.keys)

    def number(self, work: Work) -> int:
        """The number of the work's kind; a new one is given where it was never seen."""
        key = (
            tuple(work.memory_bytes[device] for device in DEVICES),
            work.disk_bytes,
            work.needs_trust,
        )
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.keys)
            self.keys.append(key)
            self._memory = np.array([memory for memory, _, _ in self.keys], np.int64)
            self._disk = np.array([disk for _, disk, _ in self.keys], np.int64)
            self._trust = np.array([trust for _, _, trust in self.keys], np.bool_)
        return number

    def open_to(self, candidate: Candidate) -> NDArray[np.bool_]:
        """Which kinds the machine can take: booleans [kinds]."""
        offered = candidate.capability
        row: NDArray[np.bool_] = (
            (self._memory[:, DEVICES.index(offered.device)] <= offered.free_memory_bytes)
            & (self._disk <= offered.free_disk_bytes)
            & (candidate.trusted | ~self._trust)
        )
        for needed, free in candidate.ran_out:
            if offered.free_memory_bytes <= free:
                row &= self._memory[:, DEVICES.index(offered.device)] < needed
        return row
