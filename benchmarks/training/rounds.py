"""The interleaved rounds: in each, every side makes some steps, one side after the other.

Every side is a process of its own. They begin anew from time to time ("lives"), since the speed of
a process hangs by some percent on where its memory happens to lie.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.paired import turns
from benchmarks.training.work import make_assignment
from protocol.specs import ModelShape
from shared.compute import compute_environment

LOSS_TOLERANCE = 1e-4
_RNG_SEED = 1


class BenchmarkError(Exception):
    """A side ended, or did other work than the others."""


@dataclass(frozen=True)
class Plan:
    """What to measure. A round is `steps` steps of each side; `warm_up` single ones come before."""

    shape: ModelShape
    batch: int
    compiled: bool
    num_threads: int
    sides: tuple[str, ...]
    lives: int
    rounds: int
    steps: int
    warm_up: int


@dataclass(frozen=True)
class Course:
    """Of one side: CPU seconds of each round, and of each life until its warm-up was over.

    `first_losses` are those of the warm-up's steps in the first life.
    """

    cpu_seconds: tuple[float, ...]
    start_seconds: tuple[float, ...]
    first_losses: tuple[float, ...]


class _Process:
    """The process of one side."""

    def __init__(self, name: str, assignment: Path, plan: Plan, num_steps: int) -> None:
        module = "benchmarks.training.side"
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(assignment), str(num_steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=compute_environment(plan.num_threads),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """It ends when its standard input does; one that does not is killed."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def steps(self, count: int) -> dict[str, float]:
        """Raises BenchmarkError when the process has ended."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BenchmarkError(f"{self._name}: its process ended") from error
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self._name}: its process ended")
        answer: dict[str, float] = json.loads(line)
        return answer


def measure(folder: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, Course]:
    """By side. Raises BenchmarkError when sides differ in a first loss by LOSS_TOLERANCE."""
    assignment = make_assignment(
        folder,
        shape=plan.shape,
        batch=plan.batch,
        compiled=plan.compiled,
        num_threads=plan.num_threads,
    )
    file = folder / "assignment.json"
    file.write_text(assignment.model_dump_json())
    cpu: dict[str, list[float]] = {name: [] for name in plan.sides}
    starts: dict[str, list[float]] = {name: [] for name in plan.sides}
    losses: dict[str, tuple[float, ...]] = {}
    order = turns(plan.sides, plan.rounds, rng_seed=_RNG_SEED)
    per_life = -(-plan.rounds // plan.lives)
    for life in range(plan.lives):
        with ExitStack() as stack:
            sides = {
                name: stack.enter_context(
                    _Process(name, file, plan, plan.warm_up + per_life * plan.steps)
                )
                for name in plan.sides
            }
            for name, side in sides.items():
                warm = [side.steps(1) for _ in range(plan.warm_up)]
                starts[name].append(warm[-1]["life_seconds"])
                losses.setdefault(name, tuple(one["loss"] for one in warm))
            check_same_work(losses)
            for number in range(life * per_life, min((life + 1) * per_life, plan.rounds)):
                for name in order[number]:
                    cpu[name].append(sides[name].steps(plan.steps)["cpu_seconds"])
            say(f"life {life + 1} of {plan.lives} is over: {len(cpu[plan.sides[0]])} rounds")
    return {
        name: Course(tuple(cpu[name]), tuple(starts[name]), losses[name]) for name in plan.sides
    }


def check_same_work(losses: Mapping[str, Sequence[float]]) -> None:
    """Raises BenchmarkError when sides did not see the same losses, step by step."""
    for step, values in enumerate(zip(*losses.values(), strict=True)):
        if max(values) - min(values) > LOSS_TOLERANCE:
            told = ", ".join(
                f"{name} {loss:.6f}" for name, loss in zip(losses, values, strict=True)
            )
            raise BenchmarkError(f"losses of step {step}: {told}; expected the same work")
