"""Asks the worker that runs in a folder. Plain blocking sockets: a verb has nothing else to do."""

import socket
import time
from pathlib import Path

from worker.control.messages import (
    MAX_ANSWER_BYTES,
    Answer,
    BadMessage,
    Refusal,
    Request,
    encode,
    read_reply,
)
from worker.control.place import find, runtime_folder
from worker.errors import WorkerError

ANSWER_SECONDS = 20.0
"""A `why` waits for the coordinator meanwhile."""


class NoWorker(WorkerError):
    """No worker runs from the folder."""


class Silent(WorkerError):
    """A worker runs from the folder, and does not answer."""

    exit_code = 3


class ControlRefused(WorkerError):
    """The worker did not do what it was asked for."""

    exit_code = 4

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.message} [{refusal.code}]")
        self.refusal = refusal


def ask(
    root: Path, request: Request, *, runtime: Path | None = None, seconds: float = ANSWER_SECONDS
) -> Answer:
    """What the worker in `root` answers. Raises NoWorker, Silent or ControlRefused."""
    path = find(root, runtime=runtime or runtime_folder())
    if path is None:
        raise NoWorker(f"no hdee-worker runs from {root}")
    try:
        line = _exchange(path, encode(request), seconds)
    except (ConnectionRefusedError, FileNotFoundError):
        raise NoWorker(f"no hdee-worker runs from {root}: the last one was killed") from None
    except TimeoutError:
        raise Silent(
            f"the hdee-worker of {root} did not answer in {seconds:.0f} s; its worker.log may say "
            "why (`hdee-worker logs`)"
        ) from None
    except OSError as error:
        raise Silent(f"the hdee-worker of {root} did not answer: {error}") from error
    try:
        reply = read_reply(line)
    except BadMessage as bad:
        raise ControlRefused(bad.refusal) from None
    if isinstance(reply, Refusal):
        raise ControlRefused(reply)
    return reply


def _exchange(path: Path, line: bytes, seconds: float) -> bytes:
    until = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(line)
        received = bytearray()
        while not received.endswith(b"\n"):
            connection.settimeout(max(0.001, until - time.monotonic()))
            part = connection.recv(65536)
            received += part
            if not part:
                raise ConnectionResetError("it hung up before its answer was complete")
            if len(received) > MAX_ANSWER_BYTES:
                raise ConnectionResetError("its answer has no end")
        return bytes(received)


def is_running(root: Path, *, runtime: Path | None = None) -> bool:
    """Whether a worker listens for verbs in `root` now."""
    path = find(root, runtime=runtime or runtime_folder())
    if path is None:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(path))
    except OSError:
        return False
    return True
