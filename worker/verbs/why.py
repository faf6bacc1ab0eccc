"""`hdee-worker why`: why nothing is trained, or why this work."""

from collections.abc import Iterator

from protocol.admin import WhyView
from shared.clock import now
from shared.tables import show, show_json
from shared.words import duration
from worker.control.client import ask
from worker.control.messages import Answer, WhyRequest
from worker.screen import clock, describe_until
from worker.status import WorkerStatus
from worker.verbs.options import Folder, Format, Url, find_worker


def why(folder: Folder = None, url: Url = None, format: Format = "text") -> None:
    """Say why the worker trains nothing, or why it got this work and no other.

    Asks the coordinator, too: what it would offer this machine now, and for each open assignment
    which requirement fails and by how much.
    """
    root = find_worker(folder, url)
    answer = ask(root, WhyRequest())
    if format == "json":
        account = answer.account
        show_json(
            {
                "status": answer.status.model_dump(mode="json"),
                "account": None if account is None else account.model_dump(mode="json"),
                "why_not": answer.why_not,
            }
        )
        return
    for line in why_lines(answer, now()):
        show(line)


def why_lines(answer: Answer, now: float) -> list[str]:
    """The reasons in words: this machine's own first, then the coordinator's."""
    devices = answer.status.devices
    lines = [f"{one.device}: {_own_reason(one, now)}" for one in devices]
    lines = lines or [_own_reason(answer.status, now)]
    if missing := answer.status.missing_senses:
        lines.append(f"Not known on this machine: {'; '.join(missing)}.")
    if answer.account is None:
        return [*lines, f"What the coordinator thinks is not known: {answer.why_not}"]
    return [*lines, *_account_lines(answer.account)]


def _own_reason(status: WorkerStatus, now: float) -> str:
    because = f": {status.reason}" if status.reason else ""
    if status.state == "paused":
        until = "" if status.pause_until is None else describe_until(status.pause_until)
        return f"Nothing is trained{because}{until}."
    if status.state in ("waiting", "away"):
        wait = (status.asks_at or 0.0) - now
        soon = f" It is asked again in {clock(wait)}." if wait > 0 else " It is asked now."
        who = "The coordinator does not answer" if status.state == "away" else "Nothing is trained"
        return f"{who}{because}.{soon}"
    if status.assignment is not None:
        return f"{status.work} [{status.assignment}]{because}."
    return f"Nothing is trained: the worker is {status.state}{because}."


def _account_lines(account: WhyView) -> Iterator[str]:
    for blocker in account.blockers:
        yield f"The coordinator gives it nothing now: {blocker}."
    if not account.blockers:
        yield f"The coordinator would say now: {account.answer}."
    if account.waited_seconds is not None:
        yield (
            f"It was first told to leave open work to faster workers "
            f"{duration(account.waited_seconds)} ago; it waits so for at most "
            f"{duration(account.patience_seconds)}, or half of the time that it would need."
        )
    for one in account.considered:
        mark = "fits" if one.fits else "lacks"
        yield f"  {mark:<5} {one.description}: {one.words} [{one.assignment}]"
    if account.next_after is not None:
        yield "  ... and more"
