"""`hdee-worker logs`: what the worker and its trainers wrote down."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from protocol.capability import MAX_DEVICES
from shared.tables import show, show_json
from worker.device import TRAINER_LOG
from worker.measured import FILE, device_in
from worker.notes import device_path
from worker.settings import BadSetting
from worker.sharing import labels_of
from worker.verbs.options import Folder, Format, Url, find_worker

DEFAULT_LINES = 40
MAX_LINES = 100_000
LOOK_SECONDS = 0.5
BLOCK_BYTES = 65_536


def logs(  # noqa: PLR0913 - the flags of the verb
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, max=MAX_LINES, help="How many of the last lines")
    ] = DEFAULT_LINES,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C")
    ] = False,
    trainer: Annotated[bool, typer.Option("--trainer", help="The trainers' logs")] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Of the trainers' logs that of one device, such as cuda:1"),
    ] = None,
    folder: Folder = None,
    url: Url = None,
    format: Format = "text",
) -> None:
    """Print the worker's log, whether one runs or not. With --format json, one line is one value.

    The log is worker.log in the worker's folder. With --trainer it is what trainers wrote, those of
    several devices one after the other, each line with its device in front.
    """
    if device is not None and not trainer:
        raise BadSetting(f"--device {device}: it says whose trainer's log; add --trainer")
    root = find_worker(folder, url)
    paths = trainer_logs(root, device) if trainer else {"worker": root / "worker.log"}
    if not follow and not any(path.exists() for path in paths.values()):
        raise BadSetting(f"{' and '.join(map(str, paths.values()))}: there is no such log yet")
    tell = show_json if format == "json" else show
    marks = {path: f"{name}: " if len(paths) > 1 else "" for name, path in paths.items()}
    for path, mark in marks.items():
        for line in last_lines(path, lines):
            tell(mark + line)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            for path, line in _added(tuple(marks)):
                tell(marks[path] + line)


def trainer_logs(root: Path, device: str | None) -> dict[str, Path]:
    """The log of each device's trainer, by what the device is called on the screen.

    `device` is the one that is meant, as on the screen or as in `join`; None: all. Raises
    BadSetting, naming those that there are.
    """
    numbers = [
        number
        for number in range(MAX_DEVICES)
        if any(device_path(root, name, number).exists() for name in (TRAINER_LOG, FILE))
    ] or [0]
    names = [device_in(device_path(root, FILE, number)) or f"device {number}" for number in numbers]
    logs = {
        label: device_path(root, TRAINER_LOG, number)
        for label, number in zip(labels_of(names), numbers, strict=True)
    }
    if device is None:
        return logs
    fitting = [label for label, name in zip(logs, names, strict=True) if device in (label, name)]
    if len(fitting) != 1:
        problem = "several are called so" if fitting else "no such device has trained here"
        known = ", ".join(f"'{label}'" for label in logs)
        raise BadSetting(f"--device {device}: {problem}; expected one of {known}")
    return {fitting[0]: logs[fitting[0]]}


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, oldest first; none if there is no file. Reads no more than them."""
    if count == 0:
        return []
    tail = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        at = file.seek(0, 2)
        while at > 0 and tail.count(b"\n") <= count:
            size = min(BLOCK_BYTES, at)
            at = file.seek(at - size)
            tail = file.read(size) + tail
    return tail.decode(errors="replace").splitlines()[-count:]


def _added(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Whole lines that are added to the files from now on, each with the file that it is of.

    A file that became shorter is read from its start.
    """
    ends = {path: path.stat().st_size if path.exists() else 0 for path in paths}
    rests = dict.fromkeys(paths, b"")
    while True:
        for path in paths:
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if file.seek(0, 2) < ends[path]:
                    ends[path], rests[path] = 0, b""
                file.seek(ends[path])
                rests[path] += file.read()
                ends[path] = file.tell()
            *whole, rests[path] = rests[path].split(b"\n")
            yield from ((path, line.decode(errors="replace")) for line in whole)
        time.sleep(LOOK_SECONDS)
