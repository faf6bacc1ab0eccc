"""Who uses a run's folder: one train-local alone, or the processes of `serve` together."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from coordinator.folders import RunFolders

LOCK = "in-use.lock"


class FolderInUse(ValueError):
    """Another process works on the run; the message names it."""


@contextmanager
def occupied(folders: RunFolders, *, by: str, shared: bool, now: float) -> Iterator[None]:
    """Holds the run's folder for the process `by`; the lock ends with the process, however it ends.

    `shared` holders (the roles of `serve`) stand beside each other, but not beside another one.
    Raises FolderInUse.
    """
    folders.state.mkdir(parents=True, exist_ok=True)
    path = folders.state / LOCK
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{folders.root}: {_holder(path)} works on this run; stop that one first"
            ) from None
        started = datetime.fromtimestamp(now, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        lock.truncate(0)
        lock.write(f"{by} (process {os.getpid()}, started {started})")
        lock.flush()
        yield


def _holder(path: Path) -> str:
    return path.read_text(errors="replace").strip()[:200] or "another process"
