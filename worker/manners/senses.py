"""Reads the facts about this machine, cheaply, and only those that its owner's rules ask for.

What cannot be read, for whatever reason, is not known: it never ends the looking.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]

from worker.manners.activity import ActivityFile, Source, is_fresh, sources
from worker.manners.rules import Facts, Rules

log = logging.getLogger(__name__)

Fact = TypeVar("Fact")

BATTERY, OTHER_CPU = "battery", "CPU of other programs"
BATTERY_SECONDS = 2.5
CPU_SECONDS = 5.0
"""What others use is the mean over so long."""


@dataclass(frozen=True, kw_only=True)
class Sense:
    """One source of facts in words, and why it is of no use here; empty if it is."""

    name: str
    missing: str = ""


class Senses:
    """What `rules` ask about. `activity_file` is in place of all that this machine tells itself."""

    def __init__(self, rules: Rules, *, activity_file: Path | None = None, now: float) -> None:
        self._rules = rules
        self._began_at = now
        self._sources: list[Source] = []
        if rules.idle_seconds is not None:
            given = None if activity_file is None else ActivityFile(activity_file)
            self._sources = sources(os.environ) if given is None else [given]
        self._battery = None if rules.on_battery else Battery()
        self._cpu = None if rules.max_other_cpu is None else OtherCpu()
        self._failures: dict[str, str] = {}
        """By the name of the sense: how it failed last, in words; it may work again."""
        self._is_failing: set[str] = set()

    def look(self, now: float) -> Facts:
        """The facts. Takes milliseconds at most, where a program has to be asked."""
        return Facts(
            idle_seconds=self._idle_seconds(now),
            on_battery=self._ask(BATTERY, self._battery.look, now) if self._battery else None,
            other_cpu=self._ask(OTHER_CPU, self._cpu.look, now) if self._cpu else None,
        )

    def described(self) -> tuple[Sense, ...]:
        """Every source that the rules ask for, for `check` and `why`."""
        found = [(source.name, source.missing) for source in self._sources]
        if self._battery is not None:
            found.append((BATTERY, self._battery.missing))
        if self._cpu is not None:
            found.append((OTHER_CPU, ""))
        return tuple(Sense(name=name, missing=why or self._failed(name)) for name, why in found)

    def _failed(self, name: str) -> str:
        return self._failures[name] if name in self._is_failing else ""

    def _ask(self, name: str, look: Callable[[float], Fact | None], now: float) -> Fact | None:
        """What `look` finds; None, and logged once, where it fails."""
        try:
            found = look(now)
        except Exception as error:  # what others wrote must not end the looking
            if name not in self._failures:
                log.exception("what %s tells is not known", name)
            self._failures[name] = f"it failed: {type(error).__name__}: {error}"
            self._is_failing.add(name)
            return None
        self._is_failing.discard(name)
        return found

    def _idle_seconds(self, now: float) -> float | None:
        """Since somebody was seen, or since we look: who was never seen may just have left."""
        usable = [source for source in self._sources if not source.missing]
        if not usable:
            return None
        looked = [self._ask(source.name, source.last_seen, now) for source in usable]
        if all(self._failed(source.name) for source in usable):
            return None
        seen = [at for at in looked if at is not None]
        return max(0.0, now - max([self._began_at, *seen]))


class Battery:
    """Whether this machine runs on its battery."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._last: bool | None = None
        self.missing = "" if self._read() is not None else "this computer has none that is seen"

    def look(self, now: float) -> bool | None:
        """None: it has none, or does not say."""
        if self.missing:
            return None
        if not is_fresh(self._looked_at, BATTERY_SECONDS, now=now):
            self._looked_at, self._last = now, self._read()
        return self._last

    def _read(self) -> bool | None:
        read = getattr(psutil, "sensors_battery", None)
        if read is None:
            return None
        try:
            battery = read()
        except (OSError, ValueError, psutil.Error):
            return None
        return (
            None if battery is None or battery.power_plugged is None else not battery.power_plugged
        )


class OtherCpu:
    """The share of all cores that programs other than this process and its children use."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._before: tuple[float, float, float] | None = None
        self._looked_at: float | None = None
        self._last: float | None = None

    def look(self, now: float) -> float | None:
        """The mean over the last CPU_SECONDS; None before they have passed."""
        if is_fresh(self._looked_at, CPU_SECONDS, now=now):
            return self._last
        self._looked_at = now
        before, self._before = self._before, self._read()
        if before is not None:
            self._last = share_of_others(before, self._before)
        return self._last

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all cores since the start: passed, spent, and spent by us."""
        times = psutil.cpu_times()._asdict()
        # Linux counts what guests use in `user` and `nice`, too.
        passed = sum(value for name, value in times.items() if not name.startswith("guest"))
        idle = times["idle"] + times.get("iowait", 0.0) + times.get("steal", 0.0)
        return passed, passed - idle, self._spent_by_us()

    def _spent_by_us(self) -> float:
        spent = 0.0
        for process in [self._own, *self._own.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                spent += sum(process.cpu_times()[:4])
        return spent


def share_of_others(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> float | None:
    """From (passed, spent, spent by us) at two times; None if no time has passed."""
    passed, spent, ours = (later - earlier for later, earlier in zip(after, before, strict=True))
    return None if passed <= 0 else min(1.0, max(0.0, (spent - ours) / passed))
