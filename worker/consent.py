"""The volunteer's word before a worker works for a coordinator: asked once, kept in the folder."""

import asyncio
import sys
from dataclasses import dataclass

from protocol.capability import Capability
from shared import logs
from shared.clock import now
from shared.tables import show
from worker.errors import WorkerError
from worker.folder import WorkerFolder
from worker.preview import Look, describe, take_look
from worker.settings import JoinSettings

QUESTION = "Work for this coordinator? You are asked this once. [y/N] "
YES = frozenset({"y", "yes"})


class NotAgreed(WorkerError):
    """Nobody has agreed to work for this coordinator, and there is nobody to ask."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Consent:
    """The worker may start. `measured` is what this machine can do, if that was just measured."""

    measured: Capability | None = None


def obtain_consent(settings: JoinSettings, *, given: bool) -> Consent | None:
    """None: the volunteer said no. Before anybody has agreed, shows what would run, and asks.

    Where nobody answers, or nobody agrees, a folder that was not there before is gone again.

    `given`: the answer is yes, what would run is shown all the same. Runs an event loop of its own.
    Raises NotAgreed where there is no terminal to ask on, and WorkerError or CapabilityError.
    """
    folder, agreed = WorkerFolder(settings.folder), False
    try:
        agreed = folder.has_agreed(settings.url)
        if agreed:
            return Consent()
        if not given and not sys.stdin.isatty():
            raise NotAgreed(
                f"nobody has agreed yet to work for {settings.url}, and there is no terminal to "
                "ask on: say --yes, after a look at what would run with --dry-run"
            )
        look = look_around(settings, folder)
        show(describe(look))
        if not given and not _ask():
            show("nothing was started")
            return None
        folder.agree(look.info.coordinator, at=now())
        agreed = True
        return Consent(measured=look.capability)
    finally:
        folder.close_or_remove(remains=agreed)


def look_around(settings: JoinSettings, folder: WorkerFolder) -> Look:
    """A look at the coordinator's work, with what happens meanwhile on standard error."""
    logs.configure(path=folder.root / "worker.log")
    return asyncio.run(take_look(settings, folder, say=_say))


def _ask() -> bool:
    # Between event loops: Ctrl-C ends the question at once.
    try:
        return input(QUESTION).strip().lower() in YES
    except EOFError:
        return False


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
