"""The real api role as a process of its own, pinned to one core, and what it uses."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from benchmarks.load.ground import Ground

READY_SECONDS = 30.0
STOP_SECONDS = 15.0
HOST = "127.0.0.1"


class ServerError(Exception):
    """The api did not start, or died; the message holds the end of its log."""


@dataclass(frozen=True)
class Usage:
    """CPU seconds of a process so far, and its resident memory in bytes."""

    cpu_seconds: float
    rss_bytes: int


def usage_of(process: psutil.Process) -> Usage:
    """What `process` used so far, all threads together."""
    with process.oneshot():
        times = process.cpu_times()
        return Usage(times.user + times.system, process.memory_info().rss)


def free_port() -> int:
    """A TCP port of 127.0.0.1 at which nobody listens now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def pin(core: int | None, pid: int = 0) -> None:
    """Keep a process (0: this one) to one core; without effect where a system cannot or has not."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, {core})


class ApiServer:
    """`hdee-coordinator serve RUN_FILE --role api`, from entering the context to leaving it."""

    def __init__(self, ground: Ground, *, core: int | None = None) -> None:
        self._ground = ground
        self._core = core
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ApiServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """What the process wrote."""
        return self._ground.folders.logs / "api.out"

    def start(self) -> None:
        """Start the process and wait until it answers. Raises ServerError."""
        command = [sys.executable, "-m", "coordinator.main", "serve", str(self._ground.run_file)]
        command += ["--role", "api", "--supervised"]
        if self._ground.url != self._ground.folders.ledger_url:
            command += ["--database", self._ground.url]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # Threads inherit the affinity; the process has none of its own yet.
        pin(self._core, self._process.pid)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"the api did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def stop(self) -> None:
        """Ask it to end; killed when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def usage(self) -> Usage:
        """What the process used so far. Raises ServerError when it is gone."""
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"the api died:\n{self.log.read_text()[-2000:]}")
        return usage_of(psutil.Process(self._process.pid))

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{HOST}:{self._ground.port}/healthz").is_success
        except httpx.HTTPError:
            return False

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
