"""Hidden states of text that all goes through one expert of a mixture: as sums, and of prompts.

What the routers in the layers are made of. Every position is forced through the expert whose
domain the text is, as it would be if routing were perfect (DUME: Fani and Ersoy 2026, arXiv
2603.29765). BOS, which every text has alike, is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.statistics import GRID
from shared.shards import Shard, Windows, scoring_windows

Floats = npt.NDArray[np.float64]
Pooling = Literal["last", "mean"]
"""Of a prompt: the hidden state of its last token, or the mean of all but BOS."""


def spread_windows(shard: Shard, *, length: int, most: int) -> Windows:
    """At most so many windows of at most `length` tokens, evenly spread over the shard.

    Raises ValueError for a length or number below 1.
    """
    if most < 1:
        raise ValueError(f"most {most}: expected at least 1 window")
    windows = scoring_windows(shard, length)
    count = len(windows.lengths)
    chosen = np.arange(min(most, count)) * count // max(1, min(most, count))
    return Windows(windows.starts[chosen], windows.lengths[chosen], windows.documents[chosen])


def hidden_products(
    model: HdeeMoeForCausalLM,
    shard: Shard,
    windows: Windows,
    *,
    expert: str | int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """The `hidden` of `statistics.ExpertStatistics`: fp64 [layers + 1, hidden + 1, hidden + 1].

    Over the tokens that the windows' labels are predicted from, `batch` windows of similar length
    at a time; what is kept does not grow with the text. `progress(done, total)` counts windows.
    Sums do not depend on `batch` but for what the model's own arithmetic makes of it. Raises
    ValueError for an expert that the mixture does not have.
    """
    if batch < 1:
        raise ValueError(f"batch {batch}: expected at least 1")
    size = model.config.hidden_size + 1
    totals = torch.zeros(
        (model.config.num_hidden_layers + 1, size, size), dtype=torch.float64, device=_place(model)
    )
    order = np.argsort(-windows.lengths, kind="stable")
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids, wanted = _padded(shard, windows, chosen)
        for total, states in zip(totals, _states(model, ids, expert), strict=True):
            some = (states[wanted.to(states.device)].to(total.device).double() / GRID).round()
            some = torch.nn.functional.pad(some * GRID, (0, 1), value=1.0)
            total.addmm_(some.T, some)
        if progress is not None:
            progress(start + len(chosen), len(order))
    return totals.cpu().numpy()


def prompt_states(
    model: HdeeMoeForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    expert: str | int,
    pooling: Pooling = "last",
) -> Floats:
    """Mean over prompts, each token ids, of what `pooling` takes of one: float64 [layers + 1, d].

    Raises ValueError for no prompt, and for one that holds no token but BOS.
    """
    if not prompts:
        raise ValueError("prompts: none, expected at least one")
    pooled = []
    for number, prompt in enumerate(prompts):
        ids = torch.as_tensor(list(prompt), dtype=torch.int64)[None]
        bos_id = model.config.bos_token_id
        wanted = torch.ones_like(ids[0]) > 0 if bos_id is None else ids[0] != bos_id
        if not wanted.any():
            raise ValueError(f"prompts: number {number} is empty, expected a token besides BOS")
        states = torch.stack([one[0].double().cpu() for one in _states(model, ids, expert)])
        kept = states[:, wanted]
        pooled.append(kept[:, -1] if pooling == "last" else kept.mean(1))
    return torch.stack(pooled).mean(0).numpy()


def _place(model: HdeeMoeForCausalLM) -> torch.device:
    """Where sums in fp64 are kept: with the model, where its device has fp64."""
    return torch.device("cpu") if model.device.type == "mps" else model.device


def _states(model: HdeeMoeForCausalLM, ids: Tensor, expert: str | int) -> list[Tensor]:
    """Of the embedded tokens, and of each FFN's input: [batch, positions, hidden] each."""
    ids = ids.to(model.device)
    with torch.inference_mode(), _inputs(model) as states:
        model.model(input_ids=ids, gates=model.forced(expert, like=ids), use_cache=False)
    return states


@contextmanager
def _inputs(model: HdeeMoeForCausalLM) -> Iterator[list[Tensor]]:
    """What enters the first layer and each FFN of the forward passes within."""
    seen: list[Tensor] = []

    def keep(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    layers = model.model.layers
    hooks = [layers[0].register_forward_pre_hook(keep)]
    hooks += [layer.mlp.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _padded(shard: Shard, windows: Windows, chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [windows, longest], padded to the right, and which of them count: not BOS."""
    column = np.arange(int(windows.lengths[chosen].max()))
    inside = column < windows.lengths[chosen][:, None]
    index = np.where(inside, windows.starts[chosen][:, None] + column, 0)
    ids = torch.from_numpy(shard.tokens[index].astype(np.int64))
    return ids, torch.from_numpy(inside) & (ids != shard.bos_id)
