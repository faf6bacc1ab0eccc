"""The trainer process: signals, the parent's death, and every failure as one event."""

import importlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from protocol.capability import Device
from shared.orphan import watch_parent
from shared.training.assignment import (
    MIXTURE,
    PILOT,
    STAY,
    MixtureAssignment,
    PilotAssignment,
    TrainerAssignment,
)
from worker.trainer import events
from worker.trainer.failures import classify

if TYPE_CHECKING:
    from worker.trainer.trainable import Trainable

_log = logging.getLogger("worker.trainer")

Assignment = TrainerAssignment | MixtureAssignment
Task = TypeVar("Task", TrainerAssignment, MixtureAssignment, PilotAssignment)


def main(arguments: Sequence[str]) -> int:
    """Runs one assignment, or with STAY those whose paths come in lines on standard input.

    With PILOT and a file it makes trial steps instead, with MIXTURE it trains part of a mixture. 0:
    finished, or stopped as asked. 1: a failed event says why. 2: wrong usage.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    kind = arguments[0] if len(arguments) == 2 else ""
    if len(arguments) != 1 and kind not in (PILOT, MIXTURE):
        usage = "usage: python -m worker.trainer [--pilot | --mixture] ASSIGNMENT.json"
        print(usage, file=sys.stderr)
        return 2
    stop = threading.Event()
    if arguments[0] == STAY:
        return _stay(stop)
    watch_parent(_end_at_once)
    if kind == PILOT:
        return _told(lambda: PilotAssignment.read(Path(arguments[1])), _try)
    _on_signals(stop.set)
    if kind == MIXTURE:
        return _told(
            lambda: MixtureAssignment.read(Path(arguments[1])), lambda one: _mix(one, stop)
        )
    return _train(Path(arguments[0]), stop)


def _stay(stop: threading.Event) -> int:
    paths: SimpleQueue[Path | None] = SimpleQueue()

    def end() -> None:
        stop.set()
        paths.put(None)

    _on_signals(end)

    def read_paths() -> None:
        for line in sys.stdin:
            paths.put(Path(line.rstrip("\n")))
        _end_at_once()

    threading.Thread(target=read_paths, name="read-paths", daemon=True).start()
    importlib.import_module("worker.trainer.loop")
    while (path := paths.get()) is not None and not stop.is_set():
        code = _train(path, stop)
        if code != 0 or stop.is_set():
            return code
        _give_back()
    return 0


def _on_signals(end: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end())


def _train(path: Path, stop: threading.Event) -> int:
    return _told(lambda: TrainerAssignment.read(path), lambda one: _run(one, stop))


def _told(read: Callable[[], Task], do: Callable[[Task], None]) -> int:
    device: Device | None = None
    try:
        task = read()
        device = task.device
        do(task)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent learns of it
        _lift_limit()
        code = classify(error)
        _log.exception("training failed: %s", code)
        peak = _peak_bytes(device) if device is not None and code == "out_of_memory" else None
        events.failed(code, f"{type(error).__name__}: {error}", peak_memory_bytes=peak)
        return 1
    return 0


def _run(assignment: TrainerAssignment, stop: threading.Event) -> None:
    from worker.trainer import loop  # noqa: PLC0415  # torch takes seconds to load

    _prepare(assignment)
    _step(loop.load(assignment), assignment, stop)


def _mix(assignment: MixtureAssignment, stop: threading.Event) -> None:
    from worker.trainer import mixture  # noqa: PLC0415  # as above

    _prepare(assignment)
    _step(mixture.load(assignment), assignment, stop)


def _step(training: "Trainable", assignment: Assignment, stop: threading.Event) -> None:
    from worker.trainer import loop  # noqa: PLC0415  # as above

    loop.run(
        training,
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=stop.is_set,
    )


def _try(assignment: PilotAssignment) -> None:
    from worker.trainer import pilot  # noqa: PLC0415  # as above

    _prepare(assignment)
    tried = pilot.try_steps(assignment.spec, assignment.device)
    events.fits(
        micro_batch=tried.micro_batch,
        peak_memory_bytes=tried.peak_memory_bytes,
        tokens_per_second=tried.tokens_per_second,
    )


def _prepare(task: Assignment | PilotAssignment) -> None:
    from worker.trainer import loop, memory  # noqa: PLC0415  # as above

    loop.prepare_torch(task.device, task.num_threads)
    if task.memory_bytes is not None:
        memory.limit(task.device, task.memory_bytes)


def _give_back() -> None:
    """What the training had: who waits for the next one holds no memory that others could use."""
    from worker.trainer import memory  # noqa: PLC0415  # as above

    memory.give_back("cpu")


def _lift_limit() -> None:
    """What tells of a failure takes memory too, and `memory.limit` may have left none."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _peak_bytes(device: Device) -> int:
    from worker.trainer import memory  # noqa: PLC0415  # as above

    return memory.peak_bytes(device)


def _end_at_once() -> None:
    """Nobody reads our events any more; the next trainer starts from the newest checkpoint."""
    _log.error("stdin is closed: the parent is gone")
    os._exit(1)
