"""The learning rate, the width that a nested step draws, and Adam over whole or partial FFNs.

A nested seed trains a prefix of every FFN in each step. Features outside the prefix have a zero
gradient, and plain Adam would still move them by their momentum and age their moments. Here they
are left exactly as they are, values, moments and step count, as if the step had not happened to
them: each block of features between two widths is its own parameter to Adam, and is skipped when
the draw does not reach it. How often a block was updated follows from the draws, so no checkpoint
stores it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, isfinite, pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.specs import ExpertSpec, TrainSpec
from shared.shards import raw_draws
from shared.tensorfiles import is_trained
from worker.trainer.lora import adapter_of

_WIDTH = 2
"""Purpose of the draws of nested widths; 1 orders the shard's windows."""


def learning_rate(train: TrainSpec, update: int) -> float:
    """The rate of update number `update`, from 1 to `schedule_steps`.

    Linear to the peak at `warmup_steps`, then a cosine to the final rate at `schedule_steps`.
    """
    if update <= train.warmup_steps:
        return train.peak_learning_rate * (update / train.warmup_steps)
    done = (update - train.warmup_steps) / (train.schedule_steps - train.warmup_steps)
    swing = train.peak_learning_rate - train.final_learning_rate
    return train.final_learning_rate + swing * (1 + cos(pi * done)) / 2


def drawn_width(spec: ExpertSpec, step: int) -> int:
    """The FFN prefix that the update after `step` trains."""
    widths = spec.nested_widths
    if not widths:
        return spec.shape.ffn_width
    return widths[int(raw_draws(spec.train.rng_seed, _WIDTH, step, 1)[0]) % len(widths)]


def adam_over(parameters: Sequence[nn.Parameter]) -> torch.optim.Adam:
    """Adam without weight decay, default betas.

    The fused kernel reads memory in one run; columns of a matrix go through foreach.
    """
    runs = [parameter for parameter in parameters if parameter.is_contiguous()]
    columns = [parameter for parameter in parameters if not parameter.is_contiguous()]
    groups: list[dict[str, Any]] = [{"params": runs, "fused": True}]
    if columns:
        groups.append({"params": columns, "fused": False, "foreach": True})
    return torch.optim.Adam(groups, lr=0.0, weight_decay=0.0)


def clip(weights: Sequence[nn.Parameter], train: TrainSpec) -> float:
    """The gradients' common norm, which they are clipped by; a clip_norm of 0 leaves them alone."""
    most = train.clip_norm or float("inf")
    return float(torch.nn.utils.clip_grad_norm_(weights, most))


def update(adam: torch.optim.Adam, rate: float) -> None:
    """One update of the parameters that have a gradient."""
    for group in adam.param_groups:
        group["lr"] = rate
    adam.step()


@dataclass(frozen=True)
class _Block:
    """Features `begin` to `end` of a weight along `axis`, which Adam sees as one parameter.

    `parameter` shares its storage with `weight`.
    """

    name: str
    weight: nn.Parameter
    parameter: nn.Parameter
    axis: int
    begin: int
    end: int

    def part_of(self, full: torch.Tensor) -> torch.Tensor:
        return full.narrow(self.axis, self.begin, self.end - self.begin)


class Optimizer:
    """Adam without weight decay, default betas, gradients clipped by their global norm.

    A clip_norm of 0 leaves gradients as they are. Weights that the spec does not train are frozen.
    Where the model has an adapter, it knows of the adapter alone.
    """

    def __init__(self, model: LlamaForCausalLM, spec: ExpertSpec) -> None:
        self._spec = spec
        self._all_weights = adapter_of(model) or dict(model.named_parameters())
        for name, weight in self._all_weights.items():
            weight.requires_grad_(is_trained(spec.trains, name))
        self._weights = [weight for weight in self._all_weights.values() if weight.requires_grad]
        self._blocks = list(_blocks(self._all_weights, spec))
        self._adam = adam_over([block.parameter for block in self._blocks])

    def step(self, step: int) -> float:
        """Makes the update after `step` from the weights' gradients and clears them.

        Returns the gradients' norm before clipping. When it is not finite, nothing is updated.
        """
        norm = clip(self._weights, self._spec.train)
        if isfinite(norm):
            self._update(step)
        for weight in self._weights:
            weight.grad = None
        return norm

    def moments(self) -> dict[str, npt.NDArray[np.float32]]:
        """Both moments of every weight, named as in `checkpointfiles.tensors_of`.

        Zero where a weight is frozen or was never updated. The arrays may share the optimizer's own
        memory: use them before the next step.
        """
        result: dict[str, npt.NDArray[np.float32]] = {}
        for moment in ("exp_avg", "exp_avg_sq"):
            full = {name: torch.zeros(w.shape) for name, w in self._all_weights.items()}
            for block in self._blocks:
                state = self._adam.state.get(block.parameter)
                if state and state[moment].shape == block.weight.shape:
                    full[block.name] = state[moment].cpu()
                elif state:
                    block.part_of(full[block.name]).copy_(state[moment])
            result.update({f"{moment}.{name}": tensor.numpy() for name, tensor in full.items()})
        return result

    def restore(self, moments: Mapping[str, npt.NDArray[np.float32]], *, step: int) -> None:
        """Takes up where an optimizer stood that had made `step` updates and gave `moments`."""
        widths = [drawn_width(self._spec, index) for index in range(step)]
        for block in self._blocks:
            updates = sum(block.begin < width for width in widths)
            if not updates:
                continue
            fused = block.parameter.is_contiguous()
            device = block.parameter.device if fused else "cpu"
            state = {"step": torch.tensor(float(updates), device=device)}
            for moment in ("exp_avg", "exp_avg_sq"):
                tensor = torch.empty_like(block.parameter, requires_grad=False)
                full = torch.from_numpy(np.array(moments[f"{moment}.{block.name}"]))
                state[moment] = tensor.copy_(block.part_of(full))
            self._adam.state[block.parameter] = state

    def _update(self, step: int) -> None:
        width = drawn_width(self._spec, step)
        for block in self._blocks:
            gradient = block.weight.grad
            if gradient is not None and block.begin < width:
                block.parameter.grad = block.part_of(gradient)
        update(self._adam, learning_rate(self._spec.train, step + 1))
        for block in self._blocks:
            block.parameter.grad = None


def _blocks(weights: Mapping[str, nn.Parameter], spec: ExpertSpec) -> Iterator[_Block]:
    for name, weight in weights.items():
        if not weight.requires_grad:
            continue
        nested = ".mlp." in name and len(spec.nested_widths) > 1
        axis = 1 if nested and ".down_proj." in name else 0
        edges = (0, *spec.nested_widths) if nested else (0, weight.shape[0])
        for begin, end in pairwise(edges):
            part = weight.detach().narrow(axis, begin, end - begin)
            yield _Block(name, weight, nn.Parameter(part), axis, begin, end)
