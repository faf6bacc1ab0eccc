"""What the loop can train: an expert, or parts of a mixture."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from protocol.capability import Device
from protocol.manifests import TrainerState
from protocol.specs import TrainSpec
from shared.shards import Batches

Loss = Callable[[torch.Tensor, int], torch.Tensor]
"""From a micro-batch, int64 [sequences, tokens + 1], and the step before its update to the scalar
that is descended on, whose value is the mean loss in nats per token."""


class Updates(Protocol):
    """An optimizer over some of a model's weights."""

    def step(self, step: int) -> float:
        """Makes the update after `step` from the weights' gradients and clears them.

        Returns the gradients' norm before clipping. When it is not finite, nothing is updated.
        """
        ...


class Trainable(Protocol):
    """One training, loaded and ready for the update after `state.step`.

    `resume` is the checkpoint that it goes on from, if any.
    """

    @property
    def train(self) -> TrainSpec: ...
    @property
    def device(self) -> Device: ...
    @property
    def resume(self) -> Path | None: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> Updates: ...
    @property
    def batches(self) -> Batches: ...
    @property
    def state(self) -> TrainerState: ...

    def loss(self) -> Loss:
        """How losses are computed. Called once, before the first step."""
        ...

    def write_checkpoint(self, folder: Path) -> None:
        """Writes the tensors of a checkpoint into an empty `folder`. Raises OSError."""
        ...

    def write_result(self, folder: Path, state: TrainerState, /) -> Path:
        """Writes what was trained up to `state`; the file with the weights. Raises OSError."""
        ...
