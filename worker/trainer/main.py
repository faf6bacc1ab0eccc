"""The trainer process: signals, the parent's death, and every failure as one event."""

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from shared.orphan import watch_parent
from shared.shards import ShardError
from shared.tensorfiles import TensorFileError
from worker.trainer import events
from worker.trainer.assignment import BadInput, TrainerAssignment

_log = logging.getLogger("worker.trainer")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR}


def main(arguments: Sequence[str]) -> int:
    """Runs one assignment.

    0: finished, or stopped as asked. 1: a failed event says why. 2: wrong usage.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    if len(arguments) != 1:
        print("usage: python -m worker.trainer ASSIGNMENT.json", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    watch_parent(_end_at_once)
    try:
        _run(Path(arguments[0]), stop)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent learns of it
        code = classify(error)
        _log.exception("training failed: %s", code)
        events.failed(code, f"{type(error).__name__}: {error}")
        return 1
    return 0


def classify(error: Exception) -> events.FailureCode:
    """Which failure an exception is; what nothing else explains is the trainer's own."""
    if isinstance(error, BadInput | ShardError | TensorFileError):
        return "bad_input"
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return "disk_full"
        return "bad_input" if error.errno in _MISSING else "trainer_failed"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "out_of_memory"
    return "trainer_failed"


def _run(path: Path, stop: threading.Event) -> None:
    assignment = TrainerAssignment.read(path)
    from worker.trainer import loop  # noqa: PLC0415  # torch takes seconds to load

    loop.prepare_torch(assignment.device, assignment.num_threads)
    training = loop.load(assignment)
    loop.run(
        training,
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=stop.is_set,
    )


def _end_at_once() -> None:
    """Nobody reads our events any more; the next trainer starts from the newest checkpoint."""
    _log.error("stdin is closed: the parent is gone")
    os._exit(1)
