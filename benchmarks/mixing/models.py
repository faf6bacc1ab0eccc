"""Made-up experts and the mixture of them: what they compute costs what real ones cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.specs import ModelShape
from shared import model as models
from shared.mixing.evidence import PAIRS
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.names import expert_name, part_of
from shared.shards import BOS_ID

OWNED = {"ffn": (), "ffn_embeddings": ("embeddings", "head")}
"""What experts own beside their FFNs, by what they were allowed to train."""

_WIDTHS = (3, 4, 5)
"""The paper's proportions of FFN widths S, M and L."""

_FAVOUR = 2.0
"""How much likelier, in nats, a token is in the domain that it belongs to."""


@dataclass(frozen=True)
class Experts:
    """Llamas of widths S, M, L in turn that differ in what they own, and the mixture of them."""

    members: tuple[LlamaForCausalLM, ...]
    mixture: HdeeMoeForCausalLM


def make_experts(shape: ModelShape, count: int, *, trained: str) -> Experts:
    """`count` experts; `shape.ffn_width` is that of M, a multiple of 4.

    Each token belongs to one expert's domain, so that a text of one domain goes to its expert: the
    mixture routes by the prefix, to the single most probable expert.
    """
    members = tuple(
        models.build(
            shape.model_copy(update={"ffn_width": shape.ffn_width // 4 * _WIDTHS[number % 3]}),
            rng_seed=number,
        ).eval()
        for number in range(count)
    )
    _share(members, OWNED[trained])
    return Experts(members, _mixture(members, shape, OWNED[trained]))


def prompt_of(domain: int, count: int, *, rows: int, length: int, vocab_size: int) -> torch.Tensor:
    """BOS and tokens of one of `count` domains: int64 [rows, length]."""
    tokens = torch.arange(BOS_ID + 1, vocab_size)
    tokens = tokens[tokens % count == domain]
    generator = torch.Generator().manual_seed(domain)
    drawn = tokens[torch.randint(0, len(tokens), (rows, length - 1), generator=generator)]
    return torch.cat([torch.full((rows, 1), BOS_ID), drawn], dim=1)


def _share(members: Sequence[LlamaForCausalLM], owned: Sequence[str]) -> None:
    """Gives all members the first one's weights, but for what they own."""
    first = dict(members[0].named_parameters())
    with torch.no_grad():
        for member in members[1:]:
            for name, weight in member.named_parameters():
                if part_of(name) not in (*owned, "ffn"):
                    weight.copy_(first[name])


def _mixture(
    members: Sequence[LlamaForCausalLM], shape: ModelShape, owned: Sequence[str]
) -> HdeeMoeForCausalLM:
    first = members[0].config
    config = HdeeMoeConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context_length,
        rms_norm_eps=shape.norm_eps,
        rope_parameters=first.rope_parameters,
        bos_token_id=BOS_ID,
        eos_token_id=None,
        expert_names=[f"expert-{number}" for number in range(len(members))],
        expert_widths=[member.config.intermediate_size for member in members],
        owned=list(owned),
        router="prefix",
        selection="top_k",
        gate_top_k=1,
        prefix_pairs=PAIRS,
    )
    mixture = HdeeMoeForCausalLM(config).eval()
    weights = dict(mixture.named_parameters())
    with torch.no_grad():
        for number, member in enumerate(members):
            for name, weight in member.named_parameters():
                own = part_of(name) in (*owned, "ffn")
                weights[expert_name(name, number) if own else name].copy_(weight)
        domains = torch.arange(shape.vocab_size)[:, None] % len(members)
        favoured = domains == torch.arange(len(members))
        table = mixture.model.router.log_likelihoods
        table.zero_()[: shape.vocab_size].copy_(torch.where(favoured, 0.0, -_FAVOUR))
    return mixture
