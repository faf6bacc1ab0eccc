"""The processes of the benchmark as the parent sees them: orders, answers, CPU time, memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

STOP_SECONDS = 20.0
_ROOT = Path(__file__).parents[2]


class ProcessError(Exception):
    """A process did not start, failed or died; the message names its log."""


class Process:
    """`python -m MODULE ARGUMENT`, which says a greeting and then obeys.

    What it writes to standard error is in `log`.
    """

    def __init__(self, module: str, argument: str, *, name: str, log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=_ROOT,
            )
        self.greeting: dict[str, Any] = {}

    def await_greeting(self) -> None:
        """Wait until it is ready. Raises ProcessError."""
        self.greeting = self.answer()

    def give(self, order: dict[str, Any]) -> None:
        """Give an order; `answer` must follow. Raises ProcessError."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(order) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises ProcessError."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises ProcessError."""
        self.give(order)
        return self.answer()

    def stop(self) -> None:
        """Ask it to end; killed when it does not. Its daemon ends with it."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def pids(self) -> dict[str, int]:
        """The Python process, and its libp2p daemon if it has one."""
        return {kind: self.greeting[kind] for kind in ("python", "p2pd") if kind in self.greeting}

    def _failure(self) -> ProcessError:
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        return ProcessError(f"{self.name}: it failed; its log ends:\n{log[-2000:]}")


class Meter:
    """CPU seconds that a process used since this was made, and how much its memory grew at most.

    Memory is Linux's own high-water mark of the resident set, reset at the beginning: nothing is
    sampled, so nothing is missed. None where there is no such mark.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._status = Path(f"/proc/{pid}/status")
        self._cpu_seconds = self._used()
        self._before: int | None = None
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            self._before = self._peak()
        except OSError:
            return

    def cpu_seconds(self) -> float:
        """All threads together."""
        return self._used() - self._cpu_seconds

    def grown_bytes(self) -> int | None:
        """By how much its memory exceeded, at its peak, what it was at the beginning."""
        return None if self._before is None else self._peak() - self._before

    def _used(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _peak(self) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
        raise OSError("no VmHWM")
