"""Token ids to hidden states: the layers, and the routers that decide once for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils.generic import ModelOutput
from transformers.utils.output_capturing import capture_outputs
from typing_extensions import override

from .configuration_hdee_moe import HdeeMoeConfig
from .experts_hdee_moe import Decision
from .layers_hdee_moe import HdeeMoeAttention, HdeeMoeDecoderLayer, norm, part_of, through
from .routing_hdee_moe import HdeeMoeLinearRouter, HdeeMoePrefixRouter, Routes, Selection


@dataclass
class HdeeMoeModelOutput(ModelOutput):
    """The last hidden states [batch, positions, hidden], and what the routers decided.

    `decisions` holds probabilities and gates [batch, positions, N]: of each routed layer, or of
    the model, and then `routes` too, where its router decides once for all layers.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    decisions: tuple[Decision, ...] | None = None
    routes: Routes | None = None


class HdeeMoePreTrainedModel(PreTrainedModel):
    """What transformers must know of these models."""

    config: HdeeMoeConfig
    config_class = HdeeMoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HdeeMoeDecoderLayer"]  # noqa: RUF012  # as transformers declares it
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": HdeeMoeDecoderLayer,
        "attentions": HdeeMoeAttention,
    }

    @override
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HdeeMoePrefixRouter):
            initialization.zeros_(module.log_likelihoods)


class HdeeMoeModel(HdeeMoePreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = part_of(
            config,
            "embeddings",
            lambda: nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id),
        )
        self.layers = nn.ModuleList(
            HdeeMoeDecoderLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.norm = norm(config)
        self.rotary_emb = LlamaRotaryEmbedding(cast(Any, config))
        self.gradient_checkpointing = False
        self.select = Selection(config)
        if config.router == "prefix":
            self.router: nn.Module = HdeeMoePrefixRouter(config)
        elif config.router == "global":
            self.router = HdeeMoeLinearRouter(config)
        self.post_init()

    @override
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(  # the signature that transformers calls
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        prefix_ids: Tensor | None = None,
        gates: Tensor | None = None,
        **others: Any,
    ) -> HdeeMoeModelOutput:
        """See HdeeMoeForCausalLM.forward."""
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("input_ids, inputs_embeds: expected exactly one of them")
        past_key_values = self._cache(past_key_values, use_cache)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        decision = self._early(
            given,
            gates=gates,
            prefix=partial(self._prefix, given, prefix_ids, attention_mask, past),
        )
        routes = Routes(decision[1]) if decision is not None else None
        hidden = through(self.embed_tokens, given, routes) if inputs_embeds is None else given
        if decision is None and self.config.router == "global":
            probabilities = self.router(hidden)
            decision = probabilities, self.select(probabilities)
            routes = Routes(decision[1])
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        others["attention_mask"] = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        others["position_embeddings"] = self.rotary_emb(hidden, position_ids=position_ids)
        hidden, decisions = self._layers(hidden, routes, past_key_values, others)
        return HdeeMoeModelOutput(
            last_hidden_state=through(self.norm, hidden, routes),
            past_key_values=past_key_values,
            decisions=(decision,) if decision is not None else decisions,
            routes=routes,
        )

    def _layers(
        self, hidden: Tensor, routes: Routes | None, cache: Cache | None, others: dict[str, Any]
    ) -> tuple[Tensor, tuple[Decision, ...]]:
        decisions = []
        for layer in self.layers:
            hidden, decided = layer(hidden, routes, past_key_values=cache, **others)
            if decided is not None:
                decisions.append(decided)
        return hidden, tuple(decisions)

    def _cache(self, given: Cache | None, wanted: bool | None) -> Cache | None:
        if wanted is None:
            wanted = self.config.use_cache
        if wanted and given is None and not (self.gradient_checkpointing and self.training):
            return DynamicCache(config=self.config)
        return given

    def _early(
        self, given: Tensor, *, gates: Tensor | None, prefix: Callable[[], Tensor]
    ) -> Decision | None:
        """What is decided before anything is computed; `given` are the token ids or embeddings."""
        batch, positions = given.shape[:2]
        form = batch, positions, self.config.num_experts
        if gates is not None:
            try:
                gates = gates.to(given.device, torch.float32).expand(form)
            except RuntimeError as error:
                raise ValueError(f"gates: {tuple(gates.shape)}, expected {form}") from error
            return gates, gates
        if self.config.router == "gateless":
            share = 1 / self.config.num_experts
            even = torch.full(form, share, dtype=torch.float32, device=given.device)
            return even, even
        if self.config.router == "prefix":
            probabilities = self.router(prefix(), positions)
            return probabilities, self.select(probabilities)
        return None

    def _prefix(
        self, given: Tensor, so_far: Tensor | None, mask: Tensor | None, past: int
    ) -> Tensor:
        """All token ids so far [batch, past + positions], -1 where padded."""
        form = given.shape[0], past + given.shape[1]
        if so_far is not None:
            if so_far.shape != form:
                raise ValueError(
                    f"prefix_ids: {tuple(so_far.shape)}, expected {form}, all tokens so far: the "
                    "prefix router takes no prompt in chunks"
                )
            return so_far
        if given.is_floating_point():
            raise ValueError(
                "inputs_embeds: the prefix router reads tokens, expected input_ids or prefix_ids"
            )
        if past:
            raise ValueError(
                f"prefix_ids: None after {past} cached positions, expected all tokens so far"
            )
        return without_padding(given, mask)


def without_padding(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Token ids, -1 where a `mask` of the same form says that they are padded."""
    return ids if mask is None or mask.shape != ids.shape else ids.where(mask != 0, -1)
