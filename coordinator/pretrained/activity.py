"""How much each FFN unit of a model does on text: what to prune, and what to double."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from shared.shards import Shard, scoring_windows

MAX_WINDOWS = 32
WINDOW = 256
"""Tokens of general text that activity is measured on: 32 windows of 256, spread evenly."""


def measure_activity(
    model: LlamaForCausalLM, shard: Shard, *, tick: Callable[[], None]
) -> npt.NDArray[np.float64]:
    """The mean size of what each unit adds to the residual stream, float64 [layers, FFN width].

    That is the mean of |act(gate) * up| over tokens, times the norm of the unit's column of down:
    with it, the measure does not hang on how a unit's scale is split between up and down. `tick` is
    called after each window.
    """
    length = min(WINDOW, model.config.max_position_embeddings)
    windows = scoring_windows(shard, length)
    count = len(windows.starts)
    chosen = np.unique(np.linspace(0, count - 1, min(MAX_WINDOWS, count)).astype(np.int64))
    layers = model.model.layers
    totals = [torch.zeros(model.config.intermediate_size, dtype=torch.float64) for _ in layers]
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(_adder(total))
        for layer, total in zip(layers, totals, strict=True)
    ]
    try:
        with torch.inference_mode():
            for start, size in zip(windows.starts[chosen], windows.lengths[chosen], strict=True):
                tokens = torch.from_numpy(shard.tokens[start : start + size].astype(np.int64))
                model.model(input_ids=tokens[None], use_cache=False)
                tick()
    finally:
        for hook in hooks:
            hook.remove()
    norms = [layer.mlp.down_proj.weight.detach().double().norm(dim=0) for layer in layers]
    num_tokens = int(windows.lengths[chosen].sum())
    return np.stack(
        [(total * norm / num_tokens).numpy() for total, norm in zip(totals, norms, strict=True)]
    )


def _adder(
    total: torch.Tensor,
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        total.add_(inputs[0].abs().double().sum(dim=(0, 1)))

    return add
