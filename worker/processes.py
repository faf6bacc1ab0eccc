"""The processes that an agent started, noted on disk, so that its next life can end orphans.

A trainer and a libp2p daemon end by themselves when their agent dies, but not while they are
suspended. A process is known by its id and by when it started: an id alone is used again.
"""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Annotated

import psutil  # type: ignore[import-untyped]
from pydantic import Field, ValidationError

from protocol.values import Items, Positive, Value
from shared.files import write_atomic
from shared.logs import facts

log = logging.getLogger(__name__)

NAME = "processes.json"
REAP_SECONDS = 10.0
KEEP_SECONDS = 15.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES = 65_536


class Born(Value):
    """One process: its id and its birth, which no other one has on this machine."""

    pid: Positive
    birth: Annotated[str, Field(max_length=200)]


class Family(Value):
    """An agent and its children."""

    agent: Born
    children: Items[Born] = ()


class ProcessNotes:
    """Notes the children of this process in a worker's folder."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME
        self._written: Family | None = None

    async def keep(self) -> None:
        """Notes children that others start: a daemon is started again when it died."""
        while True:
            await asyncio.to_thread(self.note_children)
            await asyncio.sleep(KEEP_SECONDS)

    def note_children(self) -> None:
        """To be called after a child was started; a disk that is full is no reason not to go on."""
        agent = born(os.getpid())
        if agent is None:
            return
        found = (born(child.pid) for child in psutil.Process().children())
        family = Family(agent=agent, children=tuple(one for one in found if one is not None))
        if family == self._written:
            return
        try:
            write_atomic(self._path, family.model_dump_json().encode())
        except OSError as error:
            log.warning("the children of this process are not noted: %s", error)
        else:
            self._written = family

    def reap(self) -> tuple[int, ...]:
        """Ends the children of a former agent that is dead; their ids. Once, before any is started.

        The caller holds the folder's lock, so no other agent works from it.
        """
        family = self._noted()
        if family is None or born(family.agent.pid) == family.agent:
            return ()
        orphans = [child for child in family.children if born(child.pid) == child]
        ended = []
        for orphan in orphans:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(orphan.pid)
                name = process.name()
                # psutil looks once more whether it is still the same process.
                process.kill()
                psutil.wait_procs([process], timeout=REAP_SECONDS)
                log.warning("ended an orphan of this worker %s", facts(pid=orphan.pid, name=name))
                ended.append(orphan.pid)
        self._path.unlink(missing_ok=True)
        return tuple(ended)

    def _noted(self) -> Family | None:
        try:
            with self._path.open("rb") as file:
                return Family.model_validate_json(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.error("nobody knows the children of the last life: %s: %s", self._path, error)
            return None


def born(pid: int) -> Born | None:
    """The process with this id; None: there is none, or it is dead and only not yet collected."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        birth = _ticks(pid) if _BOOT.exists() else f"{process.create_time():.2f}"
    except (psutil.Error, OSError, IndexError):
        return None
    return Born(pid=pid, birth=birth)


def _ticks(pid: int) -> str:
    """Field 22 of Linux' /proc/PID/stat, ticks since boot, and which boot: no clock moves it."""
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    ticks = status.rpartition(")")[2].split()[19]
    return f"{_BOOT.read_text(encoding='ascii').strip()} {ticks}"
