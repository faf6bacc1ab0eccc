"""Lines that stay and one that moves, on standard error: standard output is the verb's result."""

import shutil
import sys
import time
from typing import TextIO

from shared.words import plain

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 5.0
"""How often the moving line is printed where there is no terminal to redraw it on."""


class Screen:
    """What the operator sees while a run is trained here."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._last = -PLAIN_SECONDS
        self._drawn = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write(("\r\x1b[K" if self._drawn else "") + plain(text) + "\n")
        self._drawn = False

    def live(self, text: str) -> None:
        """The line that moves; not more often than a reader can follow."""
        now = time.monotonic()
        if now - self._last < (REDRAW_SECONDS if self._terminal else PLAIN_SECONDS):
            return
        self._last = now
        line = plain(text)
        if self._terminal:
            # A line that wraps could not be drawn over.
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        self._write(line if self._terminal else line + "\n")
        self._drawn = self._terminal

    def rest(self) -> None:
        """Nothing moves any more: what others write begins on a line of its own."""
        if self._drawn:
            self._write("\n")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
