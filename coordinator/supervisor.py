"""Starts the roles, restarts those that die, and stops them together."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from coordinator.folders import RunFolders
from shared.compute import compute_environment
from shared.retry import backoff_seconds

log = logging.getLogger(__name__)

ROLES = ("api", "network", "scorer")
STOP_SECONDS = 15.0
STEADY_SECONDS = 30.0
"""A role that lived this long is not counted as failing again when it dies."""

MAX_FAST_DEATHS = 5


class RoleKeepsDying(Exception):
    """A role died several times right after its start; its log says why."""


class Supervisor:
    """Three processes over one ledger. `arguments` are the flags that every role gets.

    `environment` is added to that of every role: what is in it, other users cannot list.
    """

    def __init__(
        self,
        run_file: Path,
        folders: RunFolders,
        *,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None],
    ) -> None:
        self._run_file = run_file
        self._folders = folders
        self._arguments = arguments
        self._environment = dict(environment or {})
        self._say = say
        self._pids: dict[str, int] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends all roles in good order; `run` returns then."""
        self._stopping.set()

    async def prepare(self) -> int:
        """Runs the preparation of the text in a process of its own; returns its exit code."""
        process = await self._start("prepare")
        async with _stopped_with(process, self._stopping):
            return await process.wait()

    async def run(self) -> None:
        """Keeps the roles alive until `stop`. Raises RoleKeepsDying."""
        tasks = [asyncio.create_task(self._keep(role)) for role in ROLES]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        self._stopping.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _keep(self, role: str) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._stopping.is_set():
            started = loop.time()
            process = await self._start(role)
            self._note(role, process.pid)
            async with _stopped_with(process, self._stopping):
                code = await process.wait()
            if self._stopping.is_set():
                return
            deaths = 1 if loop.time() - started > STEADY_SECONDS else deaths + 1
            self._say(f"{role} ended with exit code {code}, starting it again")
            if deaths >= MAX_FAST_DEATHS:
                raise RoleKeepsDying(
                    f"{role} died {deaths} times right after its start; "
                    f"see {self._folders.logs / f'{role}.log'}"
                )
            wait = backoff_seconds(deaths - 1, base=0.2, cap=5.0, random=random.random())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _start(self, role: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coordinator.main",
            "serve",
            str(self._run_file),
            "--role",
            role,
            "--supervised",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            env=compute_environment(os.cpu_count() or 1) | self._environment,
            # Ctrl-C reaches the whole terminal group; the supervisor alone decides what it means.
            start_new_session=True,
        )

    def _note(self, role: str, pid: int) -> None:
        self._pids[role] = pid
        (self._folders.state / "roles.json").write_text(json.dumps(self._pids))


@contextlib.asynccontextmanager
async def _stopped_with(
    process: asyncio.subprocess.Process, stopping: asyncio.Event
) -> AsyncIterator[None]:
    """Asks `process` to end when `stopping` is set, and kills it if it does not."""

    async def end() -> None:
        await stopping.wait()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.sleep(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    task = asyncio.create_task(end())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if process.stdin is not None:
            process.stdin.close()
