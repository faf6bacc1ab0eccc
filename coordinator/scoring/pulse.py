"""Signs of life, stopping and progress of a role that computes for longer than a moment."""

import logging
import threading
from collections.abc import Callable

BEAT_SECONDS = 2.0
REPORT_SECONDS = 5.0
"""Work that takes longer than this is reported in the log, and again at this interval."""


class Stopped(Exception):
    """The role was asked to stop in the middle of a piece of work; nothing of it was kept."""


class Pulse:
    """Called between pieces of work and from inside long ones, as often as one likes."""

    def __init__(
        self,
        *,
        beat: Callable[[float], None],
        stop: threading.Event,
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        """`beat` writes a sign of life, given the time; called every BEAT_SECONDS at most."""
        self._beat = beat
        self._stop = stop
        self._now = now
        self._log = log
        self._beaten_at: float | None = None

    def tick(self) -> None:
        """Beats when it is time to. Raises Stopped when the role was asked to stop."""
        if self._stop.is_set():
            raise Stopped
        moment = self._now()
        if self._beaten_at is None or not 0 <= moment - self._beaten_at < BEAT_SECONDS:
            self._beaten_at = moment
            self._beat(moment)

    def task(self, what: str, total: int) -> "Task":
        """A piece of work of `total` units, any unit, that reports its progress."""
        return Task(self, what, total, now=self._now, log=self._log)


class Task:
    """One piece of work: `advance` as it gets on."""

    def __init__(
        self, pulse: Pulse, what: str, total: int, *, now: Callable[[], float], log: logging.Logger
    ) -> None:
        self._pulse = pulse
        self._what = what
        self._total = total
        self._now = now
        self._log = log
        self._done = 0.0
        self._computed = 0.0
        self._started_at = self._reported_at = now()

    def skip(self, amount: float) -> None:
        """`amount` units were done before: they say nothing about how long the others take."""
        self._done += amount
        self._pulse.tick()

    def advance(self, amount: float) -> None:
        """`amount` more units are done. Raises Stopped when the role was asked to stop."""
        self._done += amount
        self._computed += amount
        self._pulse.tick()
        moment = self._now()
        if moment - self._reported_at >= REPORT_SECONDS:
            self._reported_at = moment
            rate = self._computed / (moment - self._started_at)
            left = max(self._total - self._done, 0.0)
            self._log.info(
                "%s: %.0f %%, about %.0f s left",
                self._what,
                100 * self._done / max(self._total, 1),
                left / rate if rate else 0.0,
            )
