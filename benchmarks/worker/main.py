"""The command line of the worker benchmark."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.load.report import machine
from benchmarks.worker.ground import BenchmarkError, Ground, end, household
from benchmarks.worker.report import Figures, Look, as_text, figures

DESCRIPTION = """\
What a worker costs: how much of a lease is not training, what the agent takes of a core and of
memory beside the trainer, and how long a start takes until the first step, with the text here
already. One coordinator and one worker with one thread, as the two commands that people use.
"""

LOOK_SECONDS = 5.0
LIMIT_SECONDS = 3 * 3600.0


def measure(root: Path, *, steps: int) -> Figures:
    """Trains a seed of so many steps, then starts the worker anew in the middle of an expert.

    Raises BenchmarkError.
    """
    with Ground(root, seed_steps=steps) as ground:
        began = time.monotonic()
        worker = ground.join()
        ground.wait_for("the seed is trained", lambda: "step " in ground.said())
        looks = []
        while (seed := ground.seed()) is None:
            looks.append(_look(list(household(worker))))
            _say(ground.said().splitlines()[-1])
            if worker.poll() is not None or time.monotonic() - began > LIMIT_SECONDS:
                raise BenchmarkError(
                    f"no seed came of it; the worker's last words:\n{ground.said()[-500:]}"
                )
            time.sleep(LOOK_SECONDS)
        _say("the seed is accepted; an expert follows, in the middle of which the worker restarts")
        ground.wait_for("an expert is trained", lambda: "expert for " in ground.said())
        ground.wait_for("its steps", lambda: "/10000 " in ground.said())
        end(worker)
        said, started = len(ground.said()), time.monotonic()
        ground.join()
        ground.wait_for("its first step", lambda: "/10000 " in ground.said()[said:])
        return figures(
            looks,
            lease_seconds=seed.lease_seconds,
            train_seconds=seed.train_seconds,
            start_seconds=time.monotonic() - started,
        )


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worker",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--steps", type=int, default=3000, help="of the seed (3000: some ten minutes of one core)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="hdee-worker-"))
    try:
        found = measure(folder, steps=options.steps)
        shutil.rmtree(folder)
    except BenchmarkError as error:
        print(f"benchmarks.worker: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if options.format == "json":
        print(json.dumps({"machine": machine(), **found.as_json()}, indent=2))
    else:
        print(as_text(found, machine=machine()))


def _look(processes: Sequence[psutil.Process]) -> Look:
    times = [process.cpu_times() for process in processes]
    return Look(
        at=time.monotonic(),
        cpu_seconds=sum(time.user + time.system for time in times),
        memory_bytes=sum(process.memory_info().rss for process in processes),
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
