"""Time, speed and the smoothed loss of a training under way."""

import time

from protocol.manifests import TrainerState
from worker.trainer import curve, events
from worker.trainer.memory import peak_bytes
from worker.trainer.trainable import Trainable

_LOSS_MEMORY = 0.95
"""Share of the smoothed loss that a step keeps."""


class Watch:
    """Keeps time from the moment the steps begin."""

    def __init__(self, training: Trainable) -> None:
        self._first = training.state
        self._device = training.device
        self._train = training.train
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._started

    def after(self, state: TrainerState, loss: float) -> TrainerState:
        """The state one update on."""
        smoothed = loss
        if state.loss is not None:
            smoothed = _LOSS_MEMORY * state.loss + (1 - _LOSS_MEMORY) * loss
        return TrainerState(
            spec=state.spec,
            step=state.step + 1,
            loss=smoothed,
            train_seconds=self._first.train_seconds + self.elapsed(),
            curve=curve.extended(state.curve, step=state.step + 1, loss=smoothed),
            inexact_from=state.inexact_from,
        )

    def tokens_per_second(self, state: TrainerState) -> float:
        """Label tokens a second of this process's steps up to `state`.

        Before it has made any: of those that earlier ones made; 0.0 where there are none.
        """
        steps, seconds = state.step - self._first.step, state.train_seconds
        if steps > 0:
            seconds -= self._first.train_seconds
        else:
            steps = state.step
        return steps * self._train.tokens_per_step / max(seconds, 1e-9)

    def report(self, state: TrainerState) -> None:
        """Tells how far it is."""
        speed = self.tokens_per_second(state)
        left = (self._train.num_steps - state.step) * self._train.tokens_per_step
        events.progress(
            step=state.step,
            num_steps=self._train.num_steps,
            loss=state.loss if state.loss is not None else 0.0,
            tokens_per_second=speed,
            eta_seconds=left / speed,
            peak_memory_bytes=peak_bytes(self._device),
        )
