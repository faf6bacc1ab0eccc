"""What a mixture's router does on texts: whom it turns to, and how many at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from coordinator.mixing.outcome import Usage
from coordinator.mixing.texts import Text
from shared.mixing.hidden_states import spread_windows
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.progress import Tell, untold
from shared.mixing.sizes import mixture_sizes
from shared.shards import Shard

USAGE_WINDOWS = 16
"""Windows of one context, spread over each text."""


def usage_of(
    model: HdeeMoeForCausalLM, texts: Sequence[Text], *, tell: Tell = untold
) -> tuple[Usage, ...]:
    """Mean gates, experts in use, and what that costs, over positions and layers of each text.

    FLOPs are those of texts of a whole context. `tell` counts texts.
    """
    names, sizes = list(model.config.expert_names), mixture_sizes(model.config)
    context = model.config.max_position_embeddings
    found: list[Usage] = []
    tell(0, len(texts))
    for text in texts:
        gates = torch.cat([one.reshape(-1, len(names)) for one in _gates(model, text.shard)])
        active = (gates > 0).double().mean(dim=0).tolist()
        found.append(
            Usage(
                text=text.name,
                gates=dict(zip(names, gates.double().mean(dim=0).tolist(), strict=True)),
                active=dict(zip(names, active, strict=True)),
                experts=sum(active),
                parameters=sizes.active_parameters(active),
                flops=sizes.flops(active, context=context),
            )
        )
        tell(len(found), len(texts))
    return tuple(found)


def _gates(model: HdeeMoeForCausalLM, shard: Shard) -> Iterator[torch.Tensor]:
    """Gates fp32 [..., N] of a window and a decision at a time."""
    windows = spread_windows(shard, length=model.config.max_position_embeddings, most=USAGE_WINDOWS)
    for start, length in zip(windows.starts, windows.lengths, strict=True):
        ids = torch.from_numpy(shard.tokens[start : start + length].astype(np.int64))[None]
        with torch.inference_mode():
            yield from model(input_ids=ids, use_cache=False, output_gates=True).gates
