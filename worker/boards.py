"""The boards of a worker with several devices: one for each, and one for the whole."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from shared.clock import now
from shared.training.runner import Event
from worker.manners.rules import Verdict
from worker.screen import LINE_SECONDS, Screen, progress_line
from worker.status import Board, WorkerState, WorkerStatus

FOREMOST: tuple[WorkerState, ...] = (
    "training",
    "handing_in",
    "fetching",
    "paused",
    "leaving",
    "away",
    "waiting",
    "joining",
)
"""Of several devices, the one in the first of these states stands for the worker."""

WHOLE = frozenset(
    {
        "finishing",
        "worker",
        "name",
        "url",
        "run",
        "coordinator",
        "transfer",
        "round_trip_seconds",
        "server_seconds",
        "accepted",
        "credit",
        "missing_senses",
        "devices",
    }
)
"""Fields of the status that are about the worker, not about one of its devices."""


class WholeBoard(Board):
    """A worker of several devices. Its status is that of the foremost one, and holds all of them.

    A state that it is told is one of every device.
    """

    def __init__(
        self,
        screen: Screen,
        status: WorkerStatus,
        labels: Sequence[str],
        *,
        clock: Callable[[], float] = now,
    ) -> None:
        super().__init__(screen, status, clock=clock)
        self.parts = tuple(_Part(self, screen, label, clock=clock) for label in labels)
        self.hear()

    @override
    def update(self, **changes: Any) -> None:
        """Replaces fields of the status; those of a device, in that of every device."""
        told = {name: value for name, value in changes.items() if name not in WHOLE}
        self.status = self.status.model_copy(
            update={name: value for name, value in changes.items() if name in WHOLE}
        )
        for part in self.parts if told else ():
            part.update(**told)

    @override
    def obey(self, verdict: Verdict) -> None:
        """Shows whether training may run."""
        for part in self.parts:
            part.obey(verdict)

    def hear(self) -> None:
        """One of the devices does something else now."""
        devices = tuple(part.status for part in self.parts)
        foremost = min(devices, key=lambda one: (one.assignment is None, FOREMOST.index(one.state)))
        mine = {name: getattr(self.status, name) for name in WHOLE}
        self.status = foremost.model_copy(update={**mine, "devices": devices, "device": ""})


class _Part(Board):
    """One device of several; what it says has its label in front."""

    def __init__(
        self, whole: WholeBoard, screen: Screen, label: str, *, clock: Callable[[], float]
    ) -> None:
        self._whole, self._label = whole, label
        super().__init__(_Labelled(screen, label), WorkerStatus(device=label), clock=clock)

    @override
    def update(self, **changes: Any) -> None:
        super().update(**changes)
        self._whole.hear()

    @override
    def say(self, text: str) -> None:
        self._whole.say(f"{self._label}: {text}")


class _Labelled:
    """A screen on which several trainings go on: a line of each, with its label in front."""

    def __init__(self, screen: Screen, label: str) -> None:
        self._screen, self._label = screen, label
        self._last = 0.0

    def say(self, text: str) -> None:
        self._screen.say(f"{self._label}: {text}")

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        at = time.monotonic()
        if at - self._last >= LINE_SECONDS:
            self._last = at
            self.say(progress_line(event, durable_step=durable_step))
