"""Starts, watches and stops the trainer process. The trainer's own side is `worker.trainer`."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from shared.compute import compute_environment
from worker.trainer.assignment import TrainerAssignment

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
"""A step, a checkpoint and the exit fit in this; a trainer that takes longer is killed."""

MAX_LINE_BYTES = 1024 * 1024

Event = dict[str, Any]
"""One line of the trainer's output: `event` says which kind it is."""


class TrainerProcess:
    """A trainer child for one assignment. Use `async with`; leaving it ends the process."""

    def __init__(self, assignment: TrainerAssignment, *, log: Path) -> None:
        self._assignment = assignment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "TrainerProcess":
        folder = Path(self._assignment.folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "assignment.json"
        path.write_text(self._assignment.model_dump_json())
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "worker.trainer",
                str(path),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
                # Ctrl-C reaches the whole terminal group; the agent alone decides what it means.
                start_new_session=True,
                env=compute_environment(self._assignment.num_threads),
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._running().pid

    async def events(self) -> AsyncIterator[Event]:
        """The trainer's lines as they come; ends when the process does.

        A trainer that ends without saying so (killed, crashed) yields a last `failed` event.
        """
        process = self._running()
        assert process.stdout is not None
        last = ""
        async for line in process.stdout:
            event = parse_event(line)
            if event is None:
                log.warning("not an event of the trainer: %r", line[:200])
                continue
            last = event["event"]
            yield event
        code = await process.wait()
        if last not in ("finished", "stopped", "failed"):
            yield {
                "event": "failed",
                "code": "trainer_failed",
                "message": f"the trainer ended with exit code {code}; see {self._log}",
            }

    async def stop(self) -> None:
        """Lets it finish the step, write a checkpoint and exit, in STOP_SECONDS; kills it then."""
        process = self._running()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            log.warning("the trainer did not stop in %.0f s", STOP_SECONDS)
            await self.kill()

    async def kill(self) -> None:
        """Ends the process, at once, and reaps it."""
        process = self._running()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "enter the context first"
        return self._process


def parse_event(line: bytes) -> Event | None:
    """The event in a line; None for anything else, such as what a library prints."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
