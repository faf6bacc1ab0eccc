"""Starts, watches and stops the trainer process. The trainer's own side is `worker.trainer`."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from shared.compute import compute_environment
from shared.training.assignment import MIXTURE, MixtureAssignment, TrainerAssignment

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
"""A step, a checkpoint and the exit fit in this; a trainer that takes longer is killed."""

MAX_LINE_BYTES = 1024 * 1024

Event = dict[str, Any]
"""One line of the trainer's output: `event` says which kind it is."""

_LAST_WORDS_BYTES = 4096

_NO_MEMORY = (
    "libgomp: Out of memory",
    "libgomp: Thread creation failed",
    "what():  std::bad_alloc",
)
"""Last words of OpenMP and of the C++ library, which end a process that gets no more memory."""

LAST = ("finished", "stopped", "failed")
"""Kinds of events after which there are none of the same assignment."""

Process = asyncio.subprocess.Process


class TrainerProcess:
    """A trainer child for one assignment. Use `async with`; leaving it ends the process.

    With `niceness` it gives way to other programs, on the CPU by so much and on the disk entirely.
    `environment`: see `spawn`.
    """

    def __init__(
        self,
        assignment: TrainerAssignment | MixtureAssignment,
        *,
        log: Path,
        niceness: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._assignment = assignment
        self._log = log
        self._niceness = niceness
        self._environment = environment
        self._process: Process | None = None
        self.is_suspended = False

    async def __aenter__(self) -> "TrainerProcess":
        arguments = [str(write_assignment(self._assignment))]
        if isinstance(self._assignment, MixtureAssignment):
            arguments.insert(0, MIXTURE)
        num_threads = self._assignment.num_threads
        self._process = await spawn(
            *arguments, num_threads=num_threads, log=self._log, environment=self._environment
        )
        if self._niceness:
            give_way(self._process.pid, self._niceness)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._running().pid

    async def events(self) -> AsyncIterator[Event]:
        """The trainer's lines as they come; ends when the process does.

        A trainer that ends without saying so (killed, crashed) yields a last `failed` event. One
        that has said its last has STOP_SECONDS to exit. To signal it in these would look whether it
        lives, and might reap it where asyncio waits for it, which then warns of a child that it
        does not know.
        """
        process = self._running()
        last = ""
        async for event in events_of(process):
            last = event["event"]
            yield event
        if last not in LAST:
            yield await died(process, self._log)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)

    def suspend(self) -> None:
        """Halts it where it is: it computes nothing, and keeps its memory."""
        self._send(signal.SIGSTOP)
        self.is_suspended = True

    def go_on(self) -> None:
        """It continues where it was halted."""
        self._send(signal.SIGCONT)
        self.is_suspended = False

    async def stop(self) -> None:
        """Lets it finish the step, write a checkpoint and exit, in STOP_SECONDS; kills it then."""
        if self.is_suspended:
            self._send(signal.SIGTERM)
            self.go_on()
        await stop(self._running())

    async def kill(self) -> None:
        """Ends the process, at once, and reaps it."""
        await kill(self._running())

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._running().send_signal(number)

    def _running(self) -> Process:
        assert self._process is not None, "enter the context first"
        return self._process


def write_assignment(assignment: TrainerAssignment | MixtureAssignment) -> Path:
    """Writes the assignment's file into its folder, and returns where it is."""
    folder = Path(assignment.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "assignment.json"
    path.write_text(assignment.model_dump_json())
    return path


async def spawn(
    *arguments: str,
    num_threads: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Starts a trainer child with `arguments`; its log is appended to `log`.

    It finds `environment` in its own besides this process's: which GPU is its, for example.
    """
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker.trainer",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            limit=MAX_LINE_BYTES,
            # Ctrl-C reaches the whole terminal group; the parent alone decides what it means.
            start_new_session=True,
            env={**compute_environment(num_threads), **(environment or {})},
        )


def give_way(pid: int, niceness: int) -> None:
    """Lets other programs go first, as far as this system can; it is a courtesy, never an error."""
    try:
        process = psutil.Process(pid)
        process.nice(niceness)
        if psutil.LINUX:
            process.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (psutil.Error, OSError) as error:
        log.warning("the trainer does not give way to other programs: %s", error)


async def events_of(process: Process) -> AsyncIterator[Event]:
    """The events in a child's output, until that ends."""
    assert process.stdout is not None
    async for line in process.stdout:
        event = parse_event(line)
        if event is None:
            log.warning("not an event of the trainer: %r", line[:200])
            continue
        yield event


async def died(process: Process, log: Path) -> Event:
    """The last event of a child that ended without saying so; it alone has an `exit_code`."""
    exit_code = await process.wait()
    words = _last_words(log)
    no_memory = exit_code in (1, -signal.SIGABRT) and words.startswith(_NO_MEMORY)
    said = f" ({words})" if no_memory else ""
    return {
        "event": "failed",
        "code": "out_of_memory" if no_memory else "trainer_failed",
        "message": f"the trainer ended with exit code {exit_code}{said}; see {log}",
        "exit_code": exit_code,
    }


def _last_words(log: Path) -> str:
    """The last line of a log that says anything, without the spaces around it."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


async def stop(process: Process) -> None:
    """Lets a child finish the step, write a checkpoint and exit; kills it after STOP_SECONDS."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        log.warning("the trainer did not stop in %.0f s", STOP_SECONDS)
        await kill(process)


async def kill(process: Process) -> None:
    """Ends a child, at once, and reaps it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def parse_event(line: bytes) -> Event | None:
    """The event in a line; None for anything else, such as what a library prints."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
