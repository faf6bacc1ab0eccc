"""Tiny mixtures with weights large enough that experts differ."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM

torch.set_num_threads(1)

VOCAB = 48


def _config(**changes: object) -> HdeeMoeConfig:
    values: dict[str, object] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "expert_names": ["cooking", "drama", "python"],
        "expert_widths": [8, 12, 20],
        "bos_token_id": 1,
        "attn_implementation": "sdpa",
    }
    return HdeeMoeConfig(**{**values, **changes})


def _mixture(*, rng_seed: int = 0, **changes: object) -> HdeeMoeForCausalLM:
    config = _config(**changes)
    model = HdeeMoeForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(rng_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
        if config.router == "prefix":
            model.model.router.log_likelihoods.normal_(0.0, 4.0, generator=generator)
    return model


@pytest.fixture(scope="session")
def mixture_config() -> Callable[..., HdeeMoeConfig]:
    """A configuration of three experts with widths 8, 12, 20, with changes."""
    return _config


@pytest.fixture(scope="session")
def tiny_mixture() -> Callable[..., HdeeMoeForCausalLM]:
    """A mixture of that configuration, with changes, whose weights depend on `rng_seed` alone."""
    return _mixture


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """Random token ids int64 [batch, length], each row beginning with BOS."""

    def draw(batch: int, length: int, *, rng_seed: int = 0) -> torch.Tensor:
        drawn = np.random.default_rng(rng_seed).integers(2, VOCAB, (batch, length))
        drawn[:, 0] = 1
        return torch.from_numpy(drawn)

    return draw
