"""Looking at a run that is served: workers, assignments, and why a worker gets what it gets."""

import re
from collections.abc import Iterable
from typing import Annotated

import typer

from coordinator.cli.errors import WrongUsage
from coordinator.cli.options import Format, RunPath, Url, WorkerName
from coordinator.cli.remote import Remote
from coordinator.cli.tables import show_assignments, show_why, show_workers
from protocol.admin import WhyView
from protocol.assignments import AssignmentState
from protocol.views import AssignmentView, WorkerView
from shared.tables import show_json

MAX_NAMED = 5

_PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")


def workers(run_file: RunPath, url: Url = None, format: Format = "text") -> None:
    """List the workers: what each does, offers and earned."""
    with Remote(run_file, url) as remote:
        views = list(remote.all_of(WorkerView, "/v1/workers", key="worker", params={}))
    if format == "json":
        show_json(views)
    else:
        show_workers(views)


def assignments(
    run_file: RunPath,
    state: Annotated[
        AssignmentState | None, typer.Option("--state", help="Only those in this state")
    ] = None,
    url: Url = None,
    format: Format = "text",
) -> None:
    """List the assignments: how far each is, who does it, and why it stands where it stands."""
    params = {} if state is None else {"state": state.value}
    with Remote(run_file, url) as remote:
        views = list(
            remote.all_of(AssignmentView, "/v1/assignments", key="assignment", params=params)
        )
    if format == "json":
        show_json(views)
    else:
        show_assignments(views)


def why(
    run_file: RunPath,
    worker: WorkerName,
    after: Annotated[str, typer.Option("--after", help="Go on after this assignment")] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=200, help="How many assignments to show")
    ] = 50,
    url: Url = None,
    format: Format = "text",
) -> None:
    """Say why a worker gets what it gets: every open assignment, and what stands in between."""
    with Remote(run_file, url) as remote:
        found = named_worker(remote, worker)
        params = {"after": after, "limit": limit}
        view = remote.get(WhyView, f"/v1/workers/{found}/why", params)
    if format == "json":
        show_json(view)
    else:
        show_why(view)


def named_worker(remote: Remote, text: str) -> str:
    """The peer id of the worker that the operator means."""
    if _PEER_ID.fullmatch(text):
        return text
    views = remote.all_of(WorkerView, "/v1/workers", key="worker", params={})
    return pick_worker(((view.worker, view.name) for view in views), text)


def pick_worker(workers: Iterable[tuple[str, str]], text: str) -> str:
    """Of (peer id, name), the one worker whose name is `text` or whose id ends with it.

    Raises WrongUsage where there is none, or several.
    """
    matching = [
        (worker, name)
        for worker, name in workers
        if text and (name == text or worker.endswith(text))
    ]
    if len(matching) == 1:
        return matching[0][0]
    if not matching:
        raise WrongUsage(
            f"worker {text!r}: no worker of this run has this name or an id that ends so; "
            "`hdee-coordinator workers` lists them"
        )
    listed = ", ".join(f"{name or 'unnamed'} {worker}" for worker, name in matching[:MAX_NAMED])
    raise WrongUsage(
        f"worker {text!r}: {len(matching)} workers match: {listed}; name one by its id"
    )


def checked_assignment(text: str) -> str:
    """An assignment's id. Raises WrongUsage for what is none."""
    if re.fullmatch(r"a[0-9a-f]{16}", text) is None:
        raise WrongUsage(
            f"assignment {text!r}: expected an id such as a0123456789abcdef; "
            "`hdee-coordinator assignments` lists them"
        )
    return text


VERBS = (workers, assignments, why)
