"""`hdee-coordinator train-local`: a run file to its results on this machine, without a network."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.errors import VerbError
from coordinator.cli.options import Format, RunPath
from coordinator.local.replicates import make_replicate
from coordinator.local.screen import Screen
from coordinator.local.session import Outcome, Settings
from coordinator.local.train import train
from coordinator.runfile import RunFile, load_run_file
from protocol.capability import Device
from shared.compute import compute_environment
from shared.tables import show, show_json
from shared.words import duration

RESULTS_FILE = "results.json"


def train_local(
    run_file: RunPath,
    trainers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Trainers at once [as many as the cores are enough for]"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads of each trainer")] = 1,
    device: Annotated[Device, typer.Option(help="What trainers compute on")] = "cpu",
    replicates: Annotated[
        int,
        typer.Option(
            min=1, max=100, help="So many runs of other random numbers, beside the first one"
        ),
    ] = 1,
    format: Format = "text",
) -> None:
    """Run the whole run file on this machine, without a network. A call goes on where one stopped.

    Same ledger, scorer, trainer, digests and files as a run that is served. Ctrl-C: the trainers
    write checkpoints, and the next call goes on. Exit code 1: stopped, or the run cannot go on.
    """
    run = load_run_file(run_file)
    # Threads that wait must not spin while trainers compute: before torch is loaded, or never.
    os.environ.update(compute_environment(_cores()))
    settings = Settings(
        trainers=trainers or (max(1, _cores() // threads) if device == "cpu" else 1),
        threads=threads,
        device=device,
        cores=_cores(),
    )
    told: list[dict[str, object]] = []
    for number in range(1, replicates + 1):
        began = time.monotonic()
        outcome, facts = _train_one(run, number, run_file=run_file, settings=settings)
        seconds = time.monotonic() - began
        told.append({**facts, "seconds": round(seconds, 3)})
        if outcome.state != "finished":
            if format == "json":
                show_json({"runs": told})
            raise VerbError(f"{facts['run_file']}: {outcome.state}: {outcome.reason}")
        if format == "text":
            show(f"finished in {duration(seconds)}: {facts['results']}")
            show(f"  hdee-coordinator score {facts['run_file']} prints its table")
    if format == "json":
        show_json({"runs": told})


def _train_one(
    run: RunFile, number: int, *, run_file: Path, settings: Settings
) -> tuple[Outcome, dict[str, object]]:
    screen = Screen()
    if number > 1:
        run_file = make_replicate(run, run_file, number)
        run = load_run_file(run_file)
        screen.say(f"replicate {number}: {run_file}")
    try:
        outcome = train(run, settings=settings, screen=screen)
    finally:
        screen.rest()
    results = run.folder / "state" / RESULTS_FILE
    facts: dict[str, object] = {
        "run_file": str(run_file),
        "state": outcome.state,
        "reason": outcome.reason,
        "rng_seed": run.recipe.rng_seed,
        "results": str(results) if results.exists() else None,
    }
    return outcome, facts


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
