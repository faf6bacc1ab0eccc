"""Which worker a verb is about, and how it answers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from worker.control.client import is_running
from worker.folder import COORDINATORS
from worker.settings import BadSetting, default_folder

Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="The worker's folder [the only one, or the only one at work]"),
]
Url = Annotated[
    str | None,
    typer.Option("--url", help="The coordinator for which it works, if its folder is the usual"),
]
JoinUrl = Annotated[str, typer.Argument(help="The coordinator, such as https://hdee.example.org")]
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="text or json")]

MARK = "agent.lock"
"""What lies in every folder from which a worker has run."""


def find_worker(folder: Path | None, url: str | None, *, base: Path | None = None) -> Path:
    """The folder of the worker that is meant. Raises BadSetting, naming those that there are.

    Without a folder and a URL: of all in `base`, where workers have their folders, the only one,
    or the only one from which a worker runs now.
    """
    if folder is not None and url is not None:
        raise BadSetting("--folder and --url: either says which worker; give one of them")
    named = folder if folder is not None else default_folder(url) if url else None
    if named is not None:
        if not (named / MARK).is_file():
            flag = f"--folder {folder}" if folder is not None else f"--url {url}: {named}"
            raise BadSetting(f"{flag}: no hdee-worker has worked there")
        return named
    base = base or default_folder("").parent
    tried = sorted(mark.parent for mark in base.glob(f"*/{MARK}"))
    # A mistyped address leaves a folder for which no coordinator ever answered.
    known = [root for root in tried if (root / COORDINATORS).is_file()] or tried
    found = known if len(known) == 1 else [root for root in known if is_running(root)]
    if len(found) == 1:
        return found[0]
    if not known:
        raise BadSetting(f"--folder: no hdee-worker has worked in {base} yet; `join` starts one")
    names = "\n".join(f"  {root}" for root in found or known)
    how_many = f"{len(found)} workers run" if found else f"of {len(known)} workers none runs"
    raise BadSetting(f"--folder: {how_many}, say which one is meant:\n{names}")
