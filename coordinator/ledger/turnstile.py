"""Whose turn it is to write to a file, among the threads and processes of one machine. Fair.

SQLite's own waiting polls with growing pauses: a process that writes group after group can keep
another one out for seconds. Here those who wait are let in one after the other. Waits for as long
as the holder lives; the kernel frees the place of a process that dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.ledger.errors import LedgerUnavailable


class Turnstile:
    """Two locks: who stands at the head of the queue, and who has the turn.

    With one lock alone, whoever gives it back and wants it again at once takes it before the one
    that waits has woken up. Here he finds the head of the queue taken, and queues.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the file to be written; two empty files are kept beside it."""
        self._head = Path(f"{path}-queue")
        self._turn = Path(f"{path}-turn")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn and have it. LedgerUnavailable where the files cannot be made."""
        head = _open(self._head)
        try:
            fcntl.flock(head, fcntl.LOCK_EX)
            turn = _open(self._turn)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX)
                # Closing gives a lock back, and a lock belongs to one opening of the file: so
                # threads wait for each other like processes.
                os.close(head)
                head = -1
                yield
            finally:
                os.close(turn)
        finally:
            if head >= 0:
                os.close(head)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerUnavailable(
            f"{path}: {error.strerror}: check the folder and its permissions"
        ) from error
