"""What the owner orders: `pause`, `resume`, `finish` and `stop`. Repeating one changes nothing."""

from pathlib import Path
from typing import Annotated

import typer

from shared.tables import show, show_json
from worker.control.client import ask
from worker.control.messages import (
    FinishRequest,
    PauseRequest,
    Request,
    ResumeRequest,
    StopRequest,
)
from worker.settings import BadSetting, parse_duration
from worker.verbs.options import Folder, Format, Url, find_worker

Duration = Annotated[
    str | None, typer.Argument(help="For how long, such as 90m or 2h [until `resume`]")
]
Now = Annotated[bool, typer.Option("--now", help="End as if killed; local checkpoints stay")]


def pause(
    duration: Duration = None, folder: Folder = None, url: Url = None, format: Format = "text"
) -> None:
    """Stop training for a while. The worker stays in the run and loses nothing.

    Training stops within seconds, in the middle of its work, and goes on by itself after DURATION,
    or when you say `resume`. A second `pause` replaces the first.
    """
    seconds = None if duration is None else _seconds(duration)
    _order(PauseRequest(seconds=seconds), find_worker(folder, url), format)


def resume(folder: Folder = None, url: Url = None, format: Format = "text") -> None:
    """End a pause. Rules that were given to `join` still hold, and the answer names them."""
    _order(ResumeRequest(), find_worker(folder, url), format)


def finish(folder: Folder = None, url: Url = None, format: Format = "text") -> None:
    """Finish the work at hand, hand it in, and leave. Without work: leave now.

    For a machine that is needed later today; one that is needed now is for `stop`.
    """
    _order(FinishRequest(), find_worker(folder, url), format)


def stop(now: Now = False, folder: Folder = None, url: Url = None, format: Format = "text") -> None:
    """Leave soon: finish the step, write a checkpoint, give the work back. As Ctrl-C does.

    Another worker goes on where this one stopped. With --now, as Ctrl-C twice: at once, without a
    word to the coordinator; the next `join` goes on at the last local checkpoint.
    """
    _order(StopRequest(at_once=now), find_worker(folder, url), format)


def _order(request: Request, root: Path, format: str) -> None:
    answer = ask(root, request)
    if format == "json":
        show_json({"message": answer.message, "status": answer.status.model_dump(mode="json")})
    else:
        show(answer.message)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except BadSetting:
        raise BadSetting(
            f"pause {text!r}: expected for how long, a number and a unit, such as 30s, 90m or "
            "1h30m; from 1s to 366d"
        ) from None


VERBS = (pause, resume, finish, stop)
