"""Watches whether this machine may train, and tells whoever waits for it."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from shared.clock import now
from worker.manners.rules import Facts, Past, Pause, Rules, Verdict, judge, remembered
from worker.manners.senses import Sense, Senses

LOOK_SECONDS = 1.0


class Manners:
    """May training run now? `watch` runs beside the agent. Without `senses` it looks at nothing."""

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        senses: Senses | None = None,
        clock: Callable[[], float] = now,
    ) -> None:
        self.rules = rules or Rules()
        self.facts = Facts()
        self._senses = senses
        self._clock = clock
        self._pause: Pause | None = None
        self._past = Past()
        self._changed = asyncio.Condition()
        self._look_now = asyncio.Event()
        self.verdict = Verdict(may_train=True)

    @classmethod
    def of(cls, rules: Rules, *, activity_file: Path | None) -> "Manners":
        """Those of this machine."""
        return cls(rules, senses=Senses(rules, activity_file=activity_file, now=now()))

    @property
    def senses(self) -> tuple[Sense, ...]:
        """What is looked at, and what of it is missing here."""
        return () if self._senses is None else self._senses.described()

    def pause(self, seconds: float | None = None) -> None:
        """No training for so long; None: until `resume`."""
        self._pause = Pause(until=None if seconds is None else self._clock() + seconds)
        self._look_now.set()

    def resume(self) -> None:
        """The owner's pause is over."""
        self._pause = None
        self._look_now.set()

    async def changed(self, verdict: Verdict) -> Verdict:
        """The verdict, as soon as it is another one than `verdict`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.verdict != verdict)
            return self.verdict

    async def until_allowed(self) -> None:
        """Returns when training may run."""
        while not self.verdict.may_train:
            await self.changed(self.verdict)

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self._look_now.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), LOOK_SECONDS)

    async def look(self) -> Verdict:
        """Looks once, and returns the verdict."""
        if self._senses is not None:
            self.facts = await asyncio.to_thread(self._senses.look, self._clock())
        at = self._clock()
        self._past = remembered(self._past, self.rules, self.facts, now=at)
        verdict = judge(self.rules, self.facts, self._pause, now=at, past=self._past)
        if verdict != self.verdict:
            async with self._changed:
                self.verdict = verdict
                self._changed.notify_all()
        return verdict
