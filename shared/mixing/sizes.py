"""What a mixture holds, and what a token costs in it, by layer and by expert. Pure arithmetic.

Parameters are exact. FLOPs are those of the matrix multiplications of a forward pass, two a weight,
which bound the speed, and of attention: scores and values over half the context, on average. The
prefix router's table is counted nowhere: it is read, not multiplied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.specs import ModelShape
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.names import layer_of, part_of
from shared.tensorfiles import model_tensors

Usage = Sequence[float]
"""For each expert the share of positions that it is active at; they add up to 1 for one expert."""

_LOOKED_UP = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Size:
    """`parameters`, and how many weights a token is multiplied with."""

    parameters: int = 0
    multiplied: int = 0

    def __add__(self, other: "Size") -> "Size":
        """Both together."""
        return Size(self.parameters + other.parameters, self.multiplied + other.multiplied)

    def __mul__(self, count: int) -> "Size":
        """That many of it."""
        return Size(self.parameters * count, self.multiplied * count)


@dataclass(frozen=True)
class LayerSizes:
    """One layer, or what is in none (None): what all positions use, and what each expert has."""

    layer: int | None
    shared: Size
    experts: tuple[Size, ...]


@dataclass(frozen=True)
class MixtureSizes:
    """The sizes of a mixture, first of what is in no layer, then of each layer."""

    layers: tuple[LayerSizes, ...]
    hidden_size: int
    always_on: int | None

    @property
    def shared(self) -> Size:
        """What all positions use, the router among it."""
        return sum((one.shared for one in self.layers), Size())

    @property
    def experts(self) -> tuple[Size, ...]:
        """What each expert has of its own, in all layers and outside."""
        own = zip(*(one.experts for one in self.layers), strict=True)
        return tuple(sum(sizes, Size()) for sizes in own)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.shared.parameters + sum(one.parameters for one in self.experts)

    def alone(self, expert: int) -> tuple[float, ...]:
        """The usage where one expert is active at every position, beside the one always on."""
        active = {expert, self.always_on}
        return tuple(float(number in active) for number in range(len(self.experts)))

    def active_parameters(self, usage: Usage) -> float:
        """Parameters that a position is computed with, on average; tables count as a whole."""
        own = zip(self._checked(usage), self.experts, strict=True)
        return self.shared.parameters + sum(share * one.parameters for share, one in own)

    def flops(self, usage: Usage, *, context: int) -> float:
        """FLOPs a token of a forward pass over texts of `context` tokens, on average."""
        own = zip(self._checked(usage), self.experts, strict=True)
        weights = self.shared.multiplied + sum(share * one.multiplied for share, one in own)
        return 2.0 * (weights + (len(self.layers) - 1) * self.hidden_size * context)

    def _checked(self, usage: Usage) -> Usage:
        if len(usage) != len(self.experts) or not all(0 <= share <= 1 for share in usage):
            raise ValueError(
                f"usage {list(usage)}: expected a share from 0 to 1 for each of "
                f"{len(self.experts)} experts"
            )
        return usage


def mixture_sizes(config: HdeeMoeConfig) -> MixtureSizes:
    """The sizes of the mixture with this configuration."""
    places: tuple[int | None, ...] = (None, *range(config.num_hidden_layers))
    shared = dict.fromkeys(places, Size())
    experts = {place: [Size() for _ in config.expert_widths] for place in places}
    forms = [_forms(config, width) for width in config.expert_widths]
    for name, form in _forms(config, config.base_width or 1).items():
        place = layer_of(name)
        if not _is_owned(config, name):
            shared[place] += _size(name, form, tied=config.tie_word_embeddings)
            continue
        for number, own in enumerate(forms):
            experts[place][number] += _size(name, own[name], tied=False)
    for place in config.routed_layers if config.router != "global" else (None,):
        shared[place] += _router_size(config)
    return MixtureSizes(
        layers=tuple(LayerSizes(one, shared[one], tuple(experts[one])) for one in places),
        hidden_size=config.hidden_size,
        always_on=config.always_on,
    )


def _forms(config: HdeeMoeConfig, width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a Llama's tensors with FFNs of this width."""
    shape = ModelShape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        ffn_width=width,
        context_length=config.max_position_embeddings,
        tied_embeddings=config.tie_word_embeddings,
    )
    return {name: form for name, (_, form) in model_tensors(shape).items()}


def _is_owned(config: HdeeMoeConfig, name: str) -> bool:
    part = part_of(name)
    return layer_of(name) in config.routed_layers if part == "ffn" else part in config.owned


def _size(name: str, form: tuple[int, ...], *, tied: bool) -> Size:
    """Of one tensor. Norms are no matrices, and embeddings are looked up, unless they are tied."""
    count = math.prod(form)
    is_multiplied = len(form) == 2 and (name != _LOOKED_UP or tied)
    return Size(count, count if is_multiplied else 0)


def _router_size(config: HdeeMoeConfig) -> Size:
    """Of the router of one layer, or of the one router of all layers."""
    number, features = config.num_experts, config.router_hidden_size or config.hidden_size
    rows = number * config.hidden_size
    weights = {
        "linear": rows,
        "global": rows,
        "fine": 3 * rows,
        "deep": features * (config.hidden_size + number),
    }.get(config.router, 0)
    return Size(weights + number * config.router_bias, weights)
