"""What a mixture's tensors are called. Pure."""

from shared.mixing.hub.configuration_hdee_moe import OWNABLE

_FFN = ".mlp."
_OWNED_BY = {
    "embeddings": ("model.embed_tokens.",),
    "head": ("lm_head.",),
    "norms": ("input_layernorm.", "post_attention_layernorm.", "model.norm."),
    "q_proj": (".q_proj.",),
    "k_proj": (".k_proj.",),
    "v_proj": (".v_proj.",),
    "o_proj": (".o_proj.",),
}


def part_of(name: str) -> str:
    """Which part of a Llama the tensor called `name` is of: one of OWNABLE, or `ffn`."""
    if _FFN in name:
        return "ffn"
    return next(part for part in OWNABLE if any(mark in name for mark in _OWNED_BY[part]))


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for embeddings, last norm and head."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def expert_name(name: str, expert: int) -> str:
    """What the Llama tensor `name` of the expert with this number is called in a mixture.

    `model.layers.0.mlp.experts.2.up_proj.weight`, `lm_head.experts.2.weight`.
    """
    if _FFN in name:
        return name.replace(_FFN, f"{_FFN}experts.{expert}.")
    module, _, last = name.rpartition(".")
    return f"{module}.experts.{expert}.{last}"
