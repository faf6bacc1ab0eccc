"""Adam over some of a mixture's weights.

A weight that a step sends no text through, such as those of an expert that no position is routed
to, is left exactly as it is, moments and count of updates too: it has no gradient. So how often
each was updated belongs to the state.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from protocol.specs import TrainSpec
from shared.tensorfiles import TensorForm, moments_of
from shared.training.assignment import BadInput
from worker.trainer.optim import adam_over, clip, learning_rate, update

_MOMENTS = ("exp_avg", "exp_avg_sq")
_UPDATES = "updates"


def state_tensors(weights: Mapping[str, TensorForm]) -> dict[str, TensorForm]:
    """Name and form of what the optimizer's state holds of `weights`: moments, and updates."""
    counts: dict[str, TensorForm] = {f"{_UPDATES}.{name}": ("I64", ()) for name in weights}
    return moments_of(weights) | counts


class MixtureOptimizer:
    """Adam as experts are trained with: the same rate, clipping and kernel."""

    def __init__(self, weights: Mapping[str, nn.Parameter], train: TrainSpec) -> None:
        self.weights = weights
        self._train = train
        self._adam = adam_over(list(weights.values()))

    def step(self, step: int) -> float:
        """Makes the update after `step` from the weights' gradients and clears them.

        Returns the gradients' norm before clipping. When it is not finite, nothing is updated.
        """
        norm = clip(list(self.weights.values()), self._train)
        if isfinite(norm):
            update(self._adam, learning_rate(self._train, step + 1))
        for weight in self.weights.values():
            weight.grad = None
        return norm

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The state, named as in `state_tensors`; zero where a weight was never updated."""
        result: dict[str, npt.NDArray[Any]] = {}
        for name, weight in self.weights.items():
            state = self._adam.state.get(weight)
            for moment in _MOMENTS:
                tensor = state[moment].cpu() if state else torch.zeros(weight.shape)
                result[f"{moment}.{name}"] = tensor.numpy()
            updates = int(state["step"]) if state else 0
            result[f"{_UPDATES}.{name}"] = np.array(updates, dtype=np.int64)
        return result

    def restore(self, tensors: Mapping[str, npt.NDArray[Any]], *, step: int) -> None:
        """Takes up where an optimizer stood that had made `step` updates and gave `tensors`.

        Raises BadInput for a weight that was updated more often, or less than never.
        """
        for name, weight in self.weights.items():
            updates = int(tensors[f"{_UPDATES}.{name}"])
            if not 0 <= updates <= step:
                raise BadInput(f"{_UPDATES}.{name}: {updates}, expected from 0 to {step}")
            if not updates:
                continue
            state = {"step": torch.tensor(float(updates), device=weight.device)}
            for moment in _MOMENTS:
                values = torch.from_numpy(np.array(tensors[f"{moment}.{name}"]))
                state[moment] = torch.empty_like(weight, requires_grad=False).copy_(values)
            self._adam.state[weight] = state
