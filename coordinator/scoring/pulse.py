"""Signs of life, stopping and progress of a role that computes for longer than a moment."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Answer = TypeVar("Answer")

BEAT_SECONDS = 2.0
REPORT_SECONDS = 5.0
"""Work that takes longer than this is reported in the log, and again at this interval."""

WORDS_SECONDS = 1.0
"""How often what is being done is put into words; three times that long they hold."""


class Stopped(Exception):
    """The role was asked to stop in the middle of a piece of work; nothing of it was kept."""


def with_signs_of_life(
    work: Callable[[], Answer], tick: Callable[[], None], *, every: float = BEAT_SECONDS / 2
) -> Answer:
    """What `work`, which knows no pulse, returns; `tick` is called meanwhile, and raises what it
    raises once the work, in a thread of its own, has ended."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="work") as threads:
        future = threads.submit(work)
        while not wait([future], timeout=every).done:
            tick()
        return future.result()


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
        self._words: tuple[float, str] | None = None

    @property
    def doing(self) -> str | None:
        """What is being done and how far it is; None between pieces of work. From any thread."""
        words = self._words
        fresh = words is not None and 0 <= self._now() - words[0] < 3 * WORDS_SECONDS
        return words[1] if words is not None and fresh else None

    def say(self, moment: float, words: str) -> None:
        """What is being done at `moment`."""
        self._words = moment, words

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
        self._started_at = self._reported_at = self._said_at = now()

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
        if moment - self._said_at >= WORDS_SECONDS:
            self._said_at = moment
            self._pulse.say(moment, self._words(moment))
        if moment - self._reported_at >= REPORT_SECONDS:
            self._reported_at = moment
            self._log.info("%s", self._words(moment))

    def _words(self, moment: float) -> str:
        """All that is to be done may turn out to be a little more than was reckoned with."""
        rate = self._computed / (moment - self._started_at)
        share = min(1.0, self._done / max(self._total, 1))
        left = max(self._total - self._done, 0.0) / rate if rate else 0.0
        return f"{self._what}: {100 * share:.0f} %, about {left:.0f} s left"
