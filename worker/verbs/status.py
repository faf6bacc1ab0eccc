"""`hdee-worker status`: what a worker does, or what it left on disk."""

from pathlib import Path

import typer

from shared.clock import now
from shared.tables import show, show_json
from shared.words import duration
from worker.control.client import NoWorker, ask
from worker.control.messages import Answer, StatusRequest
from worker.panel import credit_words, rows
from worker.remembered import Remembered, remembered_in
from worker.verbs.options import Folder, Format, Url, find_worker

NOT_RUNNING = 1


def status(folder: Folder = None, url: Url = None, format: Format = "text") -> None:
    """Say what the worker does now: its work, how far it is, what is saved, its lease, its credit.

    Where none runs: what the last one left on disk, and exit code 1. The next `join` goes on with
    it.
    """
    root = find_worker(folder, url)
    remembered = remembered_in(root)
    try:
        answer = ask(root, StatusRequest())
    except NoWorker as error:
        _show(root, None, remembered, format, str(error))
        raise typer.Exit(NOT_RUNNING) from None
    _show(root, answer, remembered, format, "")


def _show(
    root: Path, answer: Answer | None, remembered: Remembered, format: str, problem: str
) -> None:
    if format == "json":
        show_json(
            {
                "folder": str(root),
                "running": answer is not None,
                "pid": None if answer is None else answer.pid,
                "status": None if answer is None else answer.status.model_dump(mode="json"),
                "said": [] if answer is None else [one.text for one in answer.said],
                "remembered": remembered.model_dump(mode="json"),
            }
        )
        return
    if answer is None:
        show(problem)
    found = remembered_rows(remembered, now()) if answer is None else rows(answer.status, now())
    if answer is not None:
        found.append(("process", f"{answer.pid}, folder {root}"))
    for label, words in found:
        show(f"{label:<9} {words}")


def remembered_rows(remembered: Remembered, now: float) -> list[tuple[str, str]]:
    """Label and words of what lies in a folder from which no worker runs."""
    found = [
        ("lease", f"{one.work} [{one.assignment}], if it still stands") for one in remembered.leases
    ] or [("lease", "none")]
    for one in remembered.checkpoints:
        words = f"step {one.step} of {one.assignment}, {duration(max(0.0, now - one.at))} old"
        found.append(("saved", words))
    for owed in remembered.owed:
        what = "an expert" if owed.is_expert else "a checkpoint"
        found.append(("owed", f"{what} of {owed.assignment}: the coordinator has yet to fetch it"))
    return [*found, ("credit", credit_words(remembered.accepted, remembered.credit))]
