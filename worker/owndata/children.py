"""Runs a child of this package: what it needs of memory and time is not the agent's.

It is as good a guest as a trainer: it gives way to other programs, and stands still while its owner
wants that.
"""

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel

from shared.compute import compute_environment
from shared.training.runner import Process, give_way
from worker.errors import WorkerError
from worker.manners.watch import Manners
from worker.tasks import background

Answer = TypeVar("Answer", bound=BaseModel)


class OwnDataError(WorkerError):
    """Own text cannot be offered; the message says what to mend."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """How a child behaves: on so many threads, with this niceness, and only while `manners` let."""

    num_threads: int = 1
    niceness: int = 0
    manners: Manners = field(default_factory=Manners)


async def ask_child(
    module: str, arguments: list[str], answer: type[Answer], *, guest: Guest
) -> Answer:
    """What `python -m worker.owndata.MODULE` prints last. Ends it if the caller is cancelled.

    Raises OwnDataError with what the child says is wrong.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"worker.owndata.{module}", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=compute_environment(guest.num_threads),
    )
    if guest.niceness:
        give_way(child.pid, guest.niceness)
    try:
        async with background(_obey(child, guest.manners)):
            output, problems = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    lines = output.decode(errors="replace").splitlines()
    if child.returncode == 0 and lines:
        return answer.model_validate_json(lines[-1])
    said = problems.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    words = json.loads(lines[-1])["error"] if lines else said[-1]
    raise OwnDataError(f"--offer-domain: {words}")


async def _obey(child: Process, manners: Manners) -> None:
    """Halts the child while training may not run. Runs until it is cancelled."""
    while True:
        verdict = manners.verdict
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT if verdict.may_train else signal.SIGSTOP)
        await manners.changed(verdict)
