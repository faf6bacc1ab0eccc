"""What a heterogeneous mixture of experts is made of."""

import itertools
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from typing_extensions import override

from .checks_hdee_moe import MAX_WIDTH, check_llama, check_sizes, require

OWNABLE = ("embeddings", "head", "norms", "q_proj", "k_proj", "v_proj", "o_proj")
"""What each expert may have of its own, beside its FFNs. All else is shared."""

ROUTERS = ("gateless", "prefix", "linear", "global", "fine", "deep")
SELECTIONS = ("soft", "top_k", "top_p")
EARLY_ROUTERS = ("gateless", "prefix")
"""Those that decide from the tokens alone, before anything is computed."""


@strict
class HdeeMoeConfig(PreTrainedConfig):
    """A Llama whose FFNs are experts of unequal width.

    `expert_widths` are the FFN widths of the experts called `expert_names`, the same in every
    layer. `owned` says what else each of them has of its own (OWNABLE). Only the FFNs of
    `expert_layers` are experts' (None: all of them); the others have `base_width`.

    `router`, one decision a position and layer unless said otherwise:
    - gateless: every expert with the weight 1/N.
    - prefix: naive Bayes over the distinct tokens so far, one decision for all layers: softmax of
      `prefix_sharpness` times the evidence, divided by (1 + its amount) to the power of
      `prefix_saturation`: tokens do not speak independently, and many say less than their sum. A
      token counts if it did not occur among the `prefix_window` tokens before it; evidence fades by
      `prefix_decay` a token. It begins anew at BOS. Pairs of neighbouring tokens count likewise, in
      `prefix_pairs` buckets (0: they do not).
    - linear: softmax of a linear map of the FFN's input; with `router_bias` or without.
    - global: the same of the embedded token, one decision for all layers.
    - fine: three linear maps, for the gate, up and down projections of the FFN.
    - deep: two layers, of `router_hidden_size` features between them.

    `selection`: soft (those with at least `threshold`), top_k (`gate_top_k` of them), or top_p
    (the fewest that reach the mass `gate_top_p`); what is selected is normalised to sum to 1. The
    expert number `always_on` is selected at every position, beside the others.

    `penalty_weight`, `balance_weight` and `entropy_weight` weigh the router's losses in training.
    """

    model_type = "hdee_moe"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    head_dim: int | None = None
    expert_names: list[str] | tuple[str, ...] = ("expert",)
    expert_widths: list[int] | tuple[int, ...] = (3072,)
    owned: list[str] | tuple[str, ...] = ()
    expert_layers: list[int] | None = None
    base_width: int | None = None
    router: str = "prefix"
    router_bias: bool = False
    router_hidden_size: int | None = None
    selection: str = "soft"
    gate_top_k: int = 2
    gate_top_p: float = 0.6
    threshold: float = 0.01
    always_on: int | None = None
    prefix_sharpness: float = 1.0
    prefix_saturation: float = 0.5
    prefix_window: int = 64
    prefix_decay: float = 0.98
    prefix_pairs: int = 0
    penalty_weight: float = 0.0
    balance_weight: float = 0.0
    entropy_weight: float = 0.0

    @override
    def __post_init__(self, **others: Any) -> None:
        check_sizes(self)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.router_hidden_size is None:
            self.router_hidden_size = self.hidden_size
        for field in ("top_k", "top_p"):
            # transformers would take these for settings of generation
            require(field not in others, field, others.get(field), f"the name gate_{field}")
        super().__post_init__(**others)
        check_llama(self)
        _check_experts(self)
        _check_parts(self)
        _check_routing(self)
        _check_selection(self)
        _check_losses(self)

    @property
    def num_experts(self) -> int:
        """How many experts the mixture has."""
        return len(self.expert_widths)

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """The layers whose FFNs are experts', in order."""
        if self.expert_layers is None:
            return tuple(range(self.num_hidden_layers))
        return tuple(self.expert_layers)


def _check_experts(config: HdeeMoeConfig) -> None:
    names, widths = list(config.expert_names), list(config.expert_widths)
    require(bool(names), "expert_names", names, "at least one expert")
    require(len(set(names)) == len(names), "expert_names", names, "each name once")
    require(
        len(widths) == len(names), "expert_widths", widths, f"one for each of {len(names)} experts"
    )
    require(
        all(1 <= width <= MAX_WIDTH for width in widths),
        "expert_widths",
        widths,
        f"widths from 1 to {MAX_WIDTH}",
    )


def _check_parts(config: HdeeMoeConfig) -> None:
    owned = list(config.owned)
    require(
        set(owned) <= set(OWNABLE) and len(set(owned)) == len(owned),
        "owned",
        owned,
        f"some of {list(OWNABLE)}, each once",
    )
    require(
        not config.tie_word_embeddings or ("embeddings" in owned) == ("head" in owned),
        "owned",
        owned,
        "embeddings and head together, since tie_word_embeddings makes them one",
    )
    width, layers = config.base_width, config.expert_layers
    require(width is None or 1 <= width <= MAX_WIDTH, "base_width", width, f"from 1 to {MAX_WIDTH}")
    if layers is None:
        return
    rising = all(low < high for low, high in itertools.pairwise(layers))
    require(
        bool(layers) and rising and layers[0] >= 0 and layers[-1] < config.num_hidden_layers,
        "expert_layers",
        layers,
        f"rising numbers from 0 to {config.num_hidden_layers - 1}, or None for all layers",
    )
    if len(layers) < config.num_hidden_layers:
        require(
            width is not None,
            "base_width",
            width,
            "the FFN width of the layers that are not in expert_layers",
        )


def _check_routing(config: HdeeMoeConfig) -> None:
    require(config.router in ROUTERS, "router", config.router, f"one of {list(ROUTERS)}")
    require(
        not config.owned or config.router in EARLY_ROUTERS,
        "owned",
        list(config.owned),
        f"nothing with the router {config.router!r}, which decides in the layers: only "
        f"{list(EARLY_ROUTERS)} decide early enough",
    )
    require(
        not config.router_bias or config.router in ("linear", "global"),
        "router_bias",
        config.router_bias,
        f"False with the router {config.router!r}: only linear and global have one",
    )
    features = config.router_hidden_size
    require(
        features is not None and 1 <= features <= MAX_WIDTH,
        "router_hidden_size",
        features,
        f"from 1 to {MAX_WIDTH}",
    )
    sharpness, decay = config.prefix_sharpness, config.prefix_decay
    require(0 <= sharpness <= 1e6, "prefix_sharpness", sharpness, "from 0 to 1e6")
    window = config.prefix_window
    require(1 <= window <= 2**53, "prefix_window", window, f"from 1 to {2**53} tokens")
    require(0 < decay <= 1, "prefix_decay", decay, "more than 0, at most 1")
    saturation, pairs = config.prefix_saturation, config.prefix_pairs
    require(0 <= saturation <= 1, "prefix_saturation", saturation, "from 0 to 1")
    require(0 <= pairs <= 2**24, "prefix_pairs", pairs, f"from 0 to {2**24} buckets")


def _check_selection(config: HdeeMoeConfig) -> None:
    selection, number, always_on = config.selection, config.num_experts, config.always_on
    require(selection in SELECTIONS, "selection", selection, f"one of {list(SELECTIONS)}")
    require(
        config.router != "gateless" or (selection == "soft" and always_on is None),
        "selection",
        selection if always_on is None else f"{selection}, always_on={always_on}",
        "soft without always_on: a gateless mixture has all experts always on",
    )
    require(
        always_on is None or 0 <= always_on < number,
        "always_on",
        always_on,
        f"the number of an expert, from 0 to {number - 1}, or None",
    )
    others = number - (always_on is not None)
    require(
        selection != "top_k" or 1 <= config.gate_top_k <= others,
        "gate_top_k",
        config.gate_top_k,
        f"from 1 to the {others} experts to choose from",
    )
    mass = config.gate_top_p
    require(0 < mass <= 1, "gate_top_p", mass, "more than 0, at most 1")
    require(0 <= config.threshold < 1, "threshold", config.threshold, "from 0, less than 1")


def _check_losses(config: HdeeMoeConfig) -> None:
    for field in ("penalty_weight", "balance_weight", "entropy_weight"):
        weight = getattr(config, field)
        require(0 <= weight < float("inf"), field, weight, "a finite number from 0")
