"""What the operator decides over a run that is served. Repeating an order changes nothing."""

from pathlib import Path

from coordinator.cli.looks import checked_assignment, named_worker
from coordinator.cli.options import AssignmentName, Format, Reason, RunPath, Url, WorkerName
from coordinator.cli.remote import Remote
from protocol.admin import (
    AssignmentStanding,
    AssignmentVerb,
    RunPause,
    RunVerb,
    WorkerMarks,
    WorkerVerb,
)
from shared.tables import show, show_json


def ban(
    run_file: RunPath,
    worker: WorkerName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Shut a worker out: its lease ends at once, its token is refused, it may not register."""
    _treat(run_file, worker, "ban", reason=reason, url=url, format=format)


def unban(
    run_file: RunPath,
    worker: WorkerName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Let a banned worker register again."""
    _treat(run_file, worker, "unban", reason=reason, url=url, format=format)


def drain(
    run_file: RunPath,
    worker: WorkerName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Let a worker finish what it has, and give it no more."""
    _treat(run_file, worker, "drain", reason=reason, url=url, format=format)


def undrain(
    run_file: RunPath,
    worker: WorkerName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Give a draining worker work again."""
    _treat(run_file, worker, "undrain", reason=reason, url=url, format=format)


def retry(
    run_file: RunPath,
    assignment: AssignmentName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Open an assignment again that failed or was cancelled: at once, and for every worker."""
    _settle(run_file, assignment, "retry", reason=reason, url=url, format=format)


def cancel(
    run_file: RunPath,
    assignment: AssignmentName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """End an assignment and its backup, and drop their checkpoints; a holder's lease is lost."""
    _settle(run_file, assignment, "cancel", reason=reason, url=url, format=format)


def fail(
    run_file: RunPath,
    assignment: AssignmentName,
    reason: Reason = "",
    url: Url = None,
    format: Format = "text",
) -> None:
    """Say that nobody can do an assignment; its checkpoints stay for a retry."""
    _settle(run_file, assignment, "fail", reason=reason, url=url, format=format)


def pause(run_file: RunPath, reason: Reason = "", url: Url = None, format: Format = "text") -> None:
    """Make no new offers. Running leases go on."""
    _pause(run_file, "pause", reason=reason, url=url, format=format)


def resume(
    run_file: RunPath, reason: Reason = "", url: Url = None, format: Format = "text"
) -> None:
    """Make offers again after a pause."""
    _pause(run_file, "resume", reason=reason, url=url, format=format)


def _treat(
    run_file: Path, worker: str, verb: WorkerVerb, *, reason: str, url: str | None, format: str
) -> None:
    with Remote(run_file, url) as remote:
        found = named_worker(remote, worker)
        marks = remote.order(WorkerMarks, f"workers/{found}/{verb}", reason=reason)
    if format == "json":
        show_json(marks)
        return
    banned = "banned" if marks.banned else "not banned"
    show(f"worker {marks.worker}: {banned}, {'draining' if marks.draining else 'not draining'}")


def _settle(
    run_file: Path,
    assignment: str,
    verb: AssignmentVerb,
    *,
    reason: str,
    url: str | None,
    format: str,
) -> None:
    path = f"assignments/{checked_assignment(assignment)}/{verb}"
    with Remote(run_file, url) as remote:
        standing = remote.order(AssignmentStanding, path, reason=reason)
    if format == "json":
        show_json(standing)
        return
    also = f", and its backup {', '.join(standing.also)} was cancelled" if standing.also else ""
    show(f"assignment {standing.assignment}: {standing.state}{also}")


def _pause(run_file: Path, verb: RunVerb, *, reason: str, url: str | None, format: str) -> None:
    with Remote(run_file, url) as remote:
        standing = remote.order(RunPause, verb, reason=reason)
    if format == "json":
        show_json(standing)
        return
    effect = "makes no new offers; leases go on" if standing.paused else "makes offers"
    show(f"run {standing.run} {effect}")


VERBS = (ban, unban, drain, undrain, retry, cancel, fail, pause, resume)
