"""Log-likelihoods of a shard's labels under a mixture: as `likelihood` gives them for a Llama."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from shared.likelihood import (
    Floats32,
    check_length,
    chunked_log_likelihoods,
    window_log_likelihoods,
)
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.shards import Shard


def mixture_log_likelihoods(
    model: HdeeMoeForCausalLM,
    shard: Shard,
    *,
    length: int,
    batch: int,
    gates: torch.Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Floats32:
    """log p(token | tokens before it in its window) in nats, float32 [num_labels].

    Windows, order and progress are those of `label_log_likelihoods`. Nothing is carried from one
    window to the next: the router's evidence begins with each. `gates` fp32 [N] override the router
    at all positions, such as one expert's 1. Raises ValueError when `length` exceeds the context,
    or for gates of another shape.
    """
    check_length(length, model.config.max_position_embeddings)

    def score(
        inputs: torch.Tensor, labels: torch.Tensor, inside: npt.NDArray[np.bool_]
    ) -> Floats32:
        made = model.model(input_ids=inputs.to(model.device), use_cache=False, gates=gates)
        mask = torch.from_numpy(inside).to(model.device)
        # Only a head of the experts' own asks for gates, and then one decision holds everywhere.
        hidden, chosen = made.last_hidden_state[mask], made.decisions[0][1][mask]
        return chunked_log_likelihoods(
            lambda some: model.head_logits(hidden[some].float(), chosen[some]),
            labels.to(model.device)[mask],
            vocab_size=model.config.vocab_size,
        )

    return window_log_likelihoods(score, shard, length=length, batch=batch, progress=progress)
