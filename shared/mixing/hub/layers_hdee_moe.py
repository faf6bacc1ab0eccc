"""A layer: Llama's attention and an FFN, either of which may be experts'."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward
from typing_extensions import override

from .configuration_hdee_moe import HdeeMoeConfig
from .experts_hdee_moe import (
    Decision,
    HdeeMoeExpertFFN,
    HdeeMoeExperts,
    HdeeMoeFFN,
    HdeeMoeHeads,
    HdeeMoeNorms,
    HdeeMoeRMSNorm,
)
from .routing_hdee_moe import Routes


def through(module: nn.Module, inputs: Tensor, routes: Routes | None) -> Tensor:
    """What a shared module makes of `inputs`, or the experts of an owned one."""
    return module(inputs, routes) if isinstance(module, HdeeMoeExperts) else module(inputs)


def part_of(config: HdeeMoeConfig, part: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A module that is shared, or one for each expert where they own that `part`."""
    if part not in config.owned:
        return make()
    kind = {"norms": HdeeMoeNorms, "head": HdeeMoeHeads}.get(part, HdeeMoeExperts)
    return kind(config, make)


def norm(config: HdeeMoeConfig) -> nn.Module:
    return part_of(config, "norms", lambda: HdeeMoeRMSNorm(config))


class HdeeMoeAttention(nn.Module):
    """Llama's attention, whose projections may be experts'."""

    def __init__(self, config: HdeeMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        wide = config.num_attention_heads * self.head_dim
        narrow = config.num_key_value_heads * self.head_dim
        self.q_proj = self._projection("q_proj", config.hidden_size, wide)
        self.k_proj = self._projection("k_proj", config.hidden_size, narrow)
        self.v_proj = self._projection("v_proj", config.hidden_size, narrow)
        self.o_proj = self._projection("o_proj", wide, config.hidden_size)

    def _projection(self, part: str, inputs: int, outputs: int) -> nn.Module:
        bias = self.config.attention_bias
        return part_of(self.config, part, lambda: nn.Linear(inputs, outputs, bias=bias))

    @override
    def forward(
        self,
        hidden_states: Tensor,
        routes: Routes | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[batch, positions, hidden] to the same, and the attention weights where they are kept."""
        lead = hidden_states.shape[:-1]
        query, key, value = (
            through(projection, hidden_states, routes)
            .view(*lead, -1, self.head_dim)
            .transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        made, weights = attend(
            self,
            query,
            key,
            value,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **others,
        )
        made = made.reshape(*lead, -1)
        return through(self.o_proj, made, routes), weights


class HdeeMoeDecoderLayer(GradientCheckpointingLayer):
    """Attention and an FFN: that of the experts, or one that all share."""

    def __init__(self, config: HdeeMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.routed = layer_idx in config.routed_layers
        self.self_attn = HdeeMoeAttention(config, layer_idx)
        self.mlp: nn.Module
        if self.routed:
            self.mlp = HdeeMoeExpertFFN(config)
        else:
            assert config.base_width is not None
            self.mlp = HdeeMoeFFN(config, config.base_width)
        self.input_layernorm = norm(config)
        self.post_attention_layernorm = norm(config)

    @override
    def forward(
        self, hidden_states: Tensor, routes: Routes | None, **others: Any
    ) -> tuple[Tensor, Decision | None]:
        """[batch, positions, hidden] to the same, and what this layer's router decided."""
        made = through(self.input_layernorm, hidden_states, routes)
        hidden_states = hidden_states + self.self_attn(made, routes, **others)[0]
        made = through(self.post_attention_layernorm, hidden_states, routes)
        if not self.routed:
            return hidden_states + self.mlp(made), None
        made, decision = self.mlp(made, routes)
        return hidden_states + made, decision
