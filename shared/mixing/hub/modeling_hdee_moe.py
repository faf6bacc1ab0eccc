"""A Llama whose FFNs, and whatever else is owned, are experts of unequal width."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import ModelOutput, can_return_tuple
from typing_extensions import override

from .backbone_hdee_moe import (
    HdeeMoeModel,
    HdeeMoeModelOutput,
    HdeeMoePreTrainedModel,
    without_padding,
)
from .configuration_hdee_moe import HdeeMoeConfig
from .experts_hdee_moe import Decision, HdeeMoeExperts, HdeeMoeHeads
from .layers_hdee_moe import part_of, through
from .losses_hdee_moe import router_loss
from .routing_hdee_moe import Routes


@dataclass
class HdeeMoeOutput(ModelOutput):
    """Logits [batch, positions, vocab] and more.

    `gates`, with `output_gates` only: one [batch, positions, N] for each routed layer, or a single
    one where the router decides once for all layers. `expert_probabilities` [batch, positions, N]:
    the router's, before selection; the layers' mean. `router_loss`: the weighted losses of the
    router, which `loss` contains.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    gates: tuple[Tensor, ...] | None = None
    expert_probabilities: Tensor | None = None
    router_loss: Tensor | None = None


class HdeeMoeForCausalLM(HdeeMoePreTrainedModel, GenerationMixin):
    """Token ids to logits of the next token."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__(config)
        self.model = HdeeMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = part_of(
            config, "head", lambda: nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
        self._tied_weights_keys = {head: embeddings}
        if "head" in config.owned:
            self._tied_weights_keys = {
                f"lm_head.experts.{expert}.weight": f"model.embed_tokens.experts.{expert}.weight"
                for expert in range(config.num_experts)
            }
        self.post_init()

    @override
    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # the signature that transformers calls
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        prefix_ids: Tensor | None = None,
        gates: Tensor | None = None,
        output_gates: bool = False,
        **others: Any,
    ) -> HdeeMoeOutput:
        """Logits [batch, positions, vocab] of `input_ids` int64 [batch, positions].

        The prefix router needs all tokens so far: `prefix_ids` int64 [batch, past + positions], -1
        where padded, once `past_key_values` holds any. `gates` fp32 [batch, positions, N], or what
        expands to it, overrides the router in every layer; the gates of a position sum to 1.
        Raises ValueError for arguments that do not fit each other.
        """
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            prefix_ids=prefix_ids,
            gates=gates,
            **others,
        )
        logits = self._logits(made, logits_to_keep)
        loss = penalty = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.vocab_size, **others
            )
            penalty = self.router_loss(made.decisions, attention_mask)
            loss = loss + penalty
        return HdeeMoeOutput(
            loss=loss,
            logits=logits,
            past_key_values=made.past_key_values,
            hidden_states=made.hidden_states,
            attentions=made.attentions,
            gates=tuple(gates for _, gates in made.decisions) if output_gates else None,
            expert_probabilities=expert_probabilities(made.decisions),
            router_loss=penalty,
        )

    def router_loss(
        self, decisions: tuple[Decision, ...], attention_mask: Tensor | None = None
    ) -> Tensor:
        """The configuration's router losses of `decisions`: a scalar, over unpadded positions."""
        positions = decisions[0][0].shape[1]
        mask = None
        if attention_mask is not None and attention_mask.ndim == 2:
            mask = attention_mask[:, -positions:]
        return router_loss(self.config, decisions, mask)

    def head_logits(self, hidden: Tensor, gates: Tensor) -> Tensor:
        """Logits [rows, vocab] of last hidden states [rows, hidden] with gates [rows, N].

        For those who want a few rows at a time. The gates matter where the head is owned.
        """
        if not isinstance(self.lm_head, HdeeMoeHeads):
            return self.lm_head(hidden)
        return self.lm_head(hidden[None], Routes(gates[None]))[0]

    def forced(self, expert: int | str, *, like: Tensor) -> Tensor:
        """Gates fp32 [batch, positions, N] that send all of `like` (token ids) to one expert.

        Raises ValueError for an expert that the mixture does not have.
        """
        names = list(self.config.expert_names)
        number = names.index(expert) if isinstance(expert, str) and expert in names else expert
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise ValueError(f"expert: {expert!r}, expected one of {names} or its number")
        gates = torch.zeros(*like.shape, len(names), dtype=torch.float32, device=like.device)
        gates[..., number] = 1
        return gates

    @override
    def prepare_inputs_for_generation(  # transformers looks for `inputs_embeds` among the names
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        """What `forward` is called with at a step of `generate`; `input_ids` are all so far."""
        make: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs = make(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if self.config.router == "prefix" and input_ids.shape[1]:
            inputs["prefix_ids"] = without_padding(input_ids, attention_mask)
        return inputs

    @override
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        """Embeddings and heads, each expert's own too, of so many tokens, as transformers does it.

        To the prefix router new tokens say nothing of any domain. Returns the embeddings.
        """
        embeddings = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return embeddings
        resize: Any = self._get_resized_embeddings
        rows = 0
        for one in _each(embeddings):
            weight = resize(one, new_num_tokens, pad_to_multiple_of, mean_resizing).weight
            one.weight = weight.requires_grad_(one.weight.requires_grad)
            rows = len(weight)
        resize = self._get_resized_lm_head
        for one in _each(self.lm_head):
            weight = resize(one, rows, mean_resizing=mean_resizing).weight
            one.weight = weight.requires_grad_(one.weight.requires_grad)
            one.out_features = rows
        if self.config.router == "prefix":
            self.model.router.resize(rows)
        self.config.vocab_size = self.vocab_size = rows
        self.tie_weights()
        return embeddings

    def _logits(self, made: HdeeMoeModelOutput, keep: int | Tensor) -> Tensor:
        hidden, routes = made.last_hidden_state, made.routes
        assert hidden is not None
        if isinstance(keep, Tensor) or keep:
            hidden = slice_logits_to_keep(hidden, keep)
            if routes is not None and routes.sole is None:
                routes = Routes(slice_logits_to_keep(routes.gates, keep))
        return through(self.lm_head, hidden, routes)


def _each(module: nn.Module) -> list[Any]:
    """A shared module, or each expert's own."""
    return list(module.experts) if isinstance(module, HdeeMoeExperts) else [module]


def expert_probabilities(decisions: tuple[Decision, ...]) -> Tensor:
    """The router's probabilities fp32 [batch, positions, N], the mean over its decisions."""
    if len(decisions) == 1:
        return decisions[0][0]
    return torch.stack([probabilities for probabilities, _ in decisions]).mean(0)


HdeeMoeConfig.register_for_auto_class()
HdeeMoeForCausalLM.register_for_auto_class("AutoModelForCausalLM")
