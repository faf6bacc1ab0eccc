"""The process of one side: `python -m benchmarks.training.side NAME ASSIGNMENT.json STEPS`.

Each line of standard input is a number of steps; each line of standard output says what they cost.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from typing_extensions import override

from benchmarks.training.sides import Orders, side
from shared.training.assignment import TrainerAssignment


class LineOrders(Orders):
    """Orders by lines. CPU seconds are those of all threads, from the order to the last step."""

    def __init__(self) -> None:
        self._started = 0.0
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is not an answer

    @override
    def next(self) -> int:
        line = sys.stdin.readline()
        self._started = time.process_time()
        return int(line or 0)

    @override
    def done(self, loss: float) -> None:
        now = time.process_time()
        spent = {"cpu_seconds": now - self._started, "life_seconds": now, "loss": loss}
        self._out.write(json.dumps(spent) + "\n")
        self._out.flush()


def main() -> None:
    """Makes steps until standard input ends."""
    name, path, num_steps = sys.argv[1:]
    assignment = TrainerAssignment.read(Path(path))
    orders = LineOrders()
    torch.set_num_threads(assignment.num_threads)
    side(name)(assignment, orders, int(num_steps))


if __name__ == "__main__":
    main()
