"""Where the owner's activity can be seen: when it was seen last, never what it was.

Nothing here needs root. Every source may be missing; then it says what it misses.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

TOOL_SECONDS = 2.5
"""How often a program is asked: starting one costs milliseconds of a core."""

TOOL_TIMEOUT_SECONDS = 2.0
TERMINALS = ("/dev/pts/[0-9]*", "/dev/tty[0-9]*", "/dev/ttys[0-9]*")
INPUTS = "/dev/input/event*"
SESSIONS = Path("/run/systemd/sessions")
GRAPHICAL = frozenset({"x11", "wayland", "mir"})
_MAX_READ = 65_536
_REOPEN_SECONDS = 60.0


class Source(Protocol):
    """One way to see that somebody uses this machine. `missing` says why it cannot, or is empty."""

    name: str
    missing: str

    def last_seen(self, now: float) -> float | None:
        """When somebody was active last, Unix seconds; None: it saw nobody, or cannot tell."""


def is_fresh(looked_at: float | None, seconds: float, *, now: float) -> bool:
    """Whether the last look was less than `seconds` ago, however the clock was set meanwhile."""
    return looked_at is not None and 0 <= now - looked_at < seconds


class ActivityFile:
    """A file that whatever knows of the owner touches: a screensaver's hook, a game's launcher."""

    missing = ""

    def __init__(self, path: Path) -> None:
        self.name = f"file {path}"
        self._path = path

    def last_seen(self, now: float) -> float | None:
        """Its modification time; None while it does not exist."""
        del now
        try:
            return self._path.stat().st_mtime
        except OSError:
            return None


class Terminals:
    """Terminals that people have open: reading what was typed sets their access time, as w(1) uses.

    What is written to one, by us for example, sets another time.
    """

    name = "terminals"

    def __init__(self, patterns: Sequence[str] = TERMINALS) -> None:
        self._patterns = patterns
        has_any = any(Path(pattern).parent.is_dir() for pattern in patterns)
        self.missing = "" if has_any else "there are no terminals in /dev"

    def last_seen(self, now: float) -> float | None:
        """When somebody typed last in a terminal of a person's."""
        del now
        seen = []
        for pattern in self._patterns:
            for path in Path(pattern).parent.glob(Path(pattern).name):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if status.st_uid != 0 or os.getuid() == 0:
                        seen.append(status.st_atime)
        return max(seen, default=None)


class InputDevices:
    """Keyboards and mice that this user may read: that something came, which is not kept."""

    name = "input devices"

    def __init__(self, pattern: str = INPUTS) -> None:
        self._pattern = pattern
        self._open: dict[str, int] = {}
        self._opened_at: float | None = None
        self._last: float | None = None
        self.missing = "" if self._readable() else f"none of {pattern} can be read"

    def last_seen(self, now: float) -> float | None:
        """When one of them said anything last."""
        if not is_fresh(self._opened_at, _REOPEN_SECONDS, now=now):
            self._reopen(now)
        for path, device in tuple(self._open.items()):
            try:
                if os.read(device, _MAX_READ):
                    self._last = now
            except BlockingIOError:
                continue
            except OSError:
                os.close(self._open.pop(path))
        return self._last

    def close(self) -> None:
        """Gives the devices back."""
        for device in self._open.values():
            os.close(device)
        self._open.clear()

    def _readable(self) -> list[str]:
        pattern = Path(self._pattern)
        return [str(p) for p in pattern.parent.glob(pattern.name) if os.access(p, os.R_OK)]

    def _reopen(self, now: float) -> None:
        self._opened_at = now
        for path in self._readable():
            if path not in self._open:
                with contextlib.suppress(OSError):
                    self._open[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)


class Tool:
    """A program that is asked every TOOL_SECONDS; `read` finds the last activity in its output."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        read: Callable[[str, float], float | None],
        *,
        missing: str = "",
    ) -> None:
        self.name = name
        self.missing = missing
        self._command = command
        self._read = read
        self._asked_at: float | None = None
        self._last: float | None = None

    def last_seen(self, now: float) -> float | None:
        """What it said last."""
        if is_fresh(self._asked_at, TOOL_SECONDS, now=now):
            return self._last
        self._asked_at = now
        command = self._command()
        if not command:
            return None
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TOOL_TIMEOUT_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        self._last = self._read(done.stdout.decode(errors="replace"), now)
        return self._last


def sources(environment: Mapping[str, str]) -> list[Source]:
    """All that this kind of machine may have."""
    if sys.platform == "darwin":
        return [_tool("macOS", ["ioreg", "-c", "IOHIDSystem", "-d", "4"], read_ioreg), Terminals()]
    return [Terminals(), InputDevices(), _logind(), _x11(environment)]


def read_ioreg(output: str, now: float) -> float | None:
    """`HIDIdleTime` is in nanoseconds."""
    found = re.search(r'"HIDIdleTime"\s*=\s*([0-9]{1,19})', output)
    return None if found is None else now - int(found[1]) / 1e9


def read_xprintidle(output: str, now: float) -> float | None:
    """Milliseconds since the last key or move of the mouse."""
    text = output.strip()
    return now - int(text) / 1e3 if re.fullmatch("[0-9]{1,15}", text) else None


def read_logind(output: str, now: float) -> float | None:
    """What `loginctl show-session` says of desktops: of terminals their access time says more."""
    seen = []
    for block in output.split("\n\n"):
        facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if facts.get("Type") not in GRAPHICAL or facts.get("Class", "user") != "user":
            continue
        since = facts.get("IdleSinceHint", "")
        is_idle = facts.get("IdleHint") == "yes" and re.fullmatch("[0-9]{1,19}", since)
        seen.append(int(since) / 1e6 if is_idle else now)
    return max(seen, default=None)


def _tool(name: str, command: list[str], read: Callable[[str, float], float | None]) -> Tool:
    missing = "" if shutil.which(command[0]) else f"there is no {command[0]} here"
    return Tool(name, lambda: command, read, missing=missing)


def _x11(environment: Mapping[str, str]) -> Tool:
    tool = _tool("X11", ["xprintidle"], read_xprintidle)
    if not environment.get("DISPLAY"):
        tool.missing = "DISPLAY is not set"
    return tool


def _logind() -> Tool:
    def command() -> Sequence[str]:
        try:
            sessions = sorted(path.name for path in SESSIONS.iterdir() if path.name.isalnum())
        except OSError:
            return ()
        shown = [f"--property={name}" for name in ("Type", "Class", "IdleHint", "IdleSinceHint")]
        return ["loginctl", "show-session", *shown, *sessions] if sessions else ()

    missing = ""
    if not shutil.which("loginctl") or not SESSIONS.is_dir():
        missing = "systemd-logind does not run here"
    return Tool("logind", command, read_logind, missing=missing)
