"""One training, whatever becomes of its process.

It waits while the machine's owner wants it to, gives its memory back when that takes long, is
killed when it hangs, and goes on from the newest checkpoint on this disk when its process dies.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.specs import ExpertSpec
from shared import sizing
from shared.logs import facts
from shared.training.assignment import TrainerAssignment
from shared.training.runner import Event, TrainerProcess
from worker.checkpoints import newest_whole
from worker.device import Device
from worker.lease import Lease
from worker.manners.rules import in_words
from worker.manners.watch import Manners
from worker.processes import ProcessNotes
from worker.tasks import background

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
MIN_HANG_SECONDS = 60.0
START_SECONDS = 600.0
"""Loading torch, reading the weights and a first step that is compiled fit in this."""

HANG_GAPS = 20
"""A trainer that is silent for so many times its own longest silence hangs."""

SLOWEST_DISK = 10e6
"""Bytes a second. A checkpoint is written without a word, and may take gigabytes."""

MAX_RESTARTS = 2
"""Without getting any further."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Under which a training runs: how it gives way, and how long it may keep its memory paused.

    A step is expected to take `step_seconds`, to write a checkpoint at most `write_seconds`.
    `runs_out` says whether the coordinator ends the lease soon because the trainer does not move.
    """

    step_seconds: float
    niceness: int
    free_after_seconds: float
    runs_out: Callable[[], bool]
    write_seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, device: Device, spec: ExpertSpec, lease: Lease) -> "Terms":
        """For training `spec` on a device."""
        flops = sizing.train_flops(spec) / spec.train.num_steps
        settings = device.settings
        return cls(
            step_seconds=flops / max(device.capability.flops_per_second, 1.0),
            environment=device.environment,
            niceness=settings.niceness,
            free_after_seconds=settings.free_after_seconds,
            runs_out=lease.is_running_out,
            write_seconds=sizing.checkpoint_bytes(spec) / SLOWEST_DISK,
        )


class Supervised:
    """One training. `events` starts it; `stop` and `kill` end it, whatever it is at."""

    def __init__(
        self,
        assignment: TrainerAssignment,
        *,
        log: Path,
        manners: Manners,
        terms: Terms,
        say: Callable[[str], None],
    ) -> None:
        self.freed_because = ""
        """Why it was ended with a checkpoint although nobody asked for it: a pause that is long."""
        self._assignment = assignment
        self._log = log
        self._notes = ProcessNotes(log.parent)
        self._manners = manners
        self._terms = terms
        self._say = say
        self._child: TrainerProcess | None = None
        self._is_ending = False
        self._paused_at: float | None = None
        self._silence = _quiet(terms)
        self._furthest = -1
        self._failed_at = -1
        self._num_failures = 0
        self._hung = ""

    @property
    def resumed(self) -> str | None:
        """The checkpoint from which the newest process was to go on; None: from none."""
        return self._assignment.resume

    async def events(self) -> AsyncGenerator[Event, None]:
        """The trainers' events, as if it were one; the last one is one of LAST."""
        while True:
            if not await self._until_wanted():
                yield {"event": "stopped", "step": max(0, self._furthest)}
                return
            lost: Event | None = None
            async with contextlib.aclosing(self._life()) as events:
                async for event in events:
                    if "exit_code" in event:
                        lost = event
                    else:
                        self._furthest = max(self._furthest, event.get("step", -1))
                        yield event
            if lost is None:
                return
            if self._is_ending:
                # It took too long to stop, or nobody wants it: what it wrote before is here.
                yield {"event": "stopped", "step": max(0, self._furthest)}
                return
            words = self._hung or str(lost["message"])
            if not self._may_start_again():
                times = f"{self._num_failures} times without getting past step {self._furthest}"
                yield {**lost, "message": f"{words} ({times})"}
                return
            await self._go_back(words)

    async def stop(self) -> None:
        """Lets it finish the step, write a checkpoint and end; kills it if that takes too long."""
        self._is_ending = True
        if self._child is not None:
            await self._child.stop()

    async def kill(self) -> None:
        """Ends it at once."""
        self._is_ending = True
        if self._child is not None:
            await self._child.kill()

    async def _life(self) -> AsyncGenerator[Event, None]:
        """The events of one process."""
        self._silence, self._hung = _quiet(self._terms), ""
        child = TrainerProcess(
            self._assignment,
            log=self._log,
            niceness=self._terms.niceness,
            environment=self._terms.environment,
        )
        async with child:
            self._child = child
            self._notes.note_children()
            try:
                if self._is_ending:
                    # Whoever ended it while the process was being started had none to end.
                    await child.kill()
                async with background(self._mind(child)):
                    async for event in child.events():
                        self._silence = self._silence.broken(by_step="loss" in event)
                        yield event
            finally:
                self._child = None

    async def _mind(self, child: TrainerProcess) -> None:
        """Suspends it while training may not run, frees its memory, and kills it if it hangs."""
        before = _time()
        while not self._is_ending:
            at = _time()
            # A process that was itself halted for a while must not take that for its trainer's.
            passed, before = min(at - before, 2 * LOOK_SECONDS), at
            self._obey(child)
            if self._should_free():
                self._free()
                await child.stop()
                return
            if not child.is_suspended:
                self._silence = self._silence.longer(passed)
                if self._silence.seconds > self._silence.allowed:
                    self._hung = f"the trainer said nothing for {self._silence.seconds:.0f} s"
                    log.error("killing the trainer: %s", self._hung)
                    await child.kill()
                    return
            await asyncio.sleep(LOOK_SECONDS)

    def _obey(self, child: TrainerProcess) -> None:
        verdict = self._manners.verdict
        if verdict.may_train:
            if child.is_suspended:
                child.go_on()
                self._say("training goes on")
            self._paused_at = None
        elif not child.is_suspended:
            child.suspend()
            self._begin_pause(verdict.reason)

    def _begin_pause(self, reason: str) -> None:
        if self._paused_at is None:
            self._paused_at = _time()
            self._say(f"training is paused: {reason}")

    def _should_free(self) -> bool:
        if self._paused_at is None:
            return False
        return self._terms.runs_out() or self._paused_for() >= self._terms.free_after_seconds

    def _paused_for(self) -> float:
        return 0.0 if self._paused_at is None else _time() - self._paused_at

    def _free(self) -> None:
        self._is_ending = True
        why = "" if not self._terms.runs_out() else ", and the coordinator waits no longer"
        reason = self._manners.verdict.reason
        self.freed_because = f"paused for {in_words(self._paused_for())}{why}: {reason}"
        self._say("giving the memory and the lease back; what was trained stays on this disk")

    async def _until_wanted(self) -> bool:
        """Waits before a process is started; False: it is no longer wanted."""
        while not self._is_ending and not self._manners.verdict.may_train:
            self._begin_pause(self._manners.verdict.reason)
            if self._should_free():
                self._free()
            else:
                await asyncio.sleep(LOOK_SECONDS)
        self._paused_at = None
        return not self._is_ending

    def _may_start_again(self) -> bool:
        if self._furthest > self._failed_at:
            self._num_failures = 0
        self._failed_at = self._furthest
        self._num_failures += 1
        return self._num_failures <= MAX_RESTARTS

    async def _go_back(self, words: str) -> None:
        """The next process starts from the newest whole checkpoint here, if there is one."""
        assignment = self._assignment
        found = await asyncio.to_thread(newest_whole, Path(assignment.folder), assignment.spec)
        if found is not None:
            self._assignment = assignment.model_copy(update={"resume": str(found)})
        place = "from where it began" if found is None else f"from {found.name}"
        log.error("starting the trainer again %s", facts(place=place, because=words))
        self._say(f"{words}: starting it again {place}")


@dataclass(frozen=True, kw_only=True)
class Silence:
    """How long a trainer has said nothing, suspensions left out, and its longest silence before.

    `longest` is None until it has made steps, of which one is `expected` to take so many seconds:
    before, it loads and compiles. Between steps it may write for so many seconds (`writing`).
    """

    expected: float
    writing: float = 0.0
    seconds: float = 0.0
    longest: float | None = None
    has_stepped: bool = False

    def longer(self, seconds: float) -> "Silence":
        """After so much more of it."""
        return replace(self, seconds=self.seconds + seconds)

    def broken(self, *, by_step: bool) -> "Silence":
        """It said something; `by_step`: of a step that it has made."""
        longest = max(self.seconds, self.longest or 0.0) if self.has_stepped else None
        has_stepped = self.has_stepped or by_step
        return replace(self, seconds=0.0, longest=longest, has_stepped=has_stepped)

    @property
    def allowed(self) -> float:
        """Longer than that, it hangs."""
        if self.longest is None:
            return max(START_SECONDS, HANG_GAPS * self.expected) + self.writing
        return max(MIN_HANG_SECONDS, HANG_GAPS * self.longest) + self.writing


def _quiet(terms: Terms) -> Silence:
    return Silence(expected=terms.step_seconds, writing=terms.write_seconds)


def _time() -> float:
    return asyncio.get_running_loop().time()
