"""A trainer child that stays for further assignments: loading torch costs seconds of a core."""

from collections.abc import AsyncIterator
from pathlib import Path

from shared.training.assignment import STAY, TrainerAssignment
from shared.training.runner import (
    LAST,
    Event,
    Process,
    died,
    events_of,
    kill,
    spawn,
    stop,
    write_assignment,
)


class ResidentTrainer:
    """One assignment after the other, each in the state of a fresh process.

    The child is started when it is needed, again after a failure or a stop. Use `async with`.
    """

    def __init__(self, *, num_threads: int, log: Path) -> None:
        self._num_threads = num_threads
        self._log = log
        self._process: Process | None = None

    async def __aenter__(self) -> "ResidentTrainer":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await kill(self._process)

    async def start(self) -> Process:
        """The child; it loads torch at once, before its first assignment."""
        if self._process is None or self._process.returncode is not None:
            self._process = await spawn(STAY, num_threads=self._num_threads, log=self._log)
        return self._process

    async def train(self, assignment: TrainerAssignment) -> AsyncIterator[Event]:
        """The events of one assignment, the last of which is one of LAST."""
        process = await self.start()
        assert process.stdin is not None
        process.stdin.write(f"{write_assignment(assignment)}\n".encode())
        async for event in events_of(process):
            if event["event"] in LAST and event["event"] != "finished":
                # It ends now: the next assignment must not be given to it.
                await process.wait()
            yield event
            if event["event"] in LAST:
                return
        yield await died(process, self._log)

    async def stop(self) -> None:
        """Lets it finish the step, write a checkpoint and exit, or kills it in the end."""
        if self._process is not None:
            await stop(self._process)
