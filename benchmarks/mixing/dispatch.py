"""One layer of experts of unequal width beside one of equal widths that computes as many FLOPs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.paired import Ratio, paired_ratio, turns
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.experts_hdee_moe import HdeeMoeExpertFFN
from shared.mixing.hub.routing_hdee_moe import Routes
from shared.mixing.widths import preset_widths

GOAL = 1.15
"""Most that the unequal widths may cost, in CPU seconds of the equal ones."""

UNEQUAL, EQUAL = "unequal", "equal"
_CALLS = 4
_RNG_SEED = 1


@dataclass(frozen=True)
class Layer:
    """A layer that is timed: `top_k` of the experts with these widths at each of `tokens`."""

    title: str
    hidden: int
    widths: tuple[int, ...]
    top_k: int
    tokens: int

    @property
    def equal_width(self) -> int:
        """The mean width, a whole number: with equally many tokens for each, the same FLOPs."""
        return sum(self.widths) // len(self.widths)


LAYERS = (
    Layer(
        "HMoE, arithmetic, 1/8",
        256,
        preset_widths("arithmetic", num_experts=8, total_width=4096),
        2,
        1024,
    ),
    Layer(
        "HMoE, geometric, 1/8",
        256,
        preset_widths("geometric", num_experts=8, total_width=4080),
        2,
        1024,
    ),
    Layer(
        "HMoE, hybrid, 1/8", 256, preset_widths("hybrid", num_experts=8, total_width=4096), 2, 1024
    ),
    Layer("S, M, L of bench21, twice", 64, (144, 192, 240) * 2, 1, 960),
    Layer("S, M, L at hidden 512", 512, (1152, 1536, 1920), 1, 510),
)
"""HMoE's widths (arXiv 2408.10681), an eighth of their total of 32,768; ours, 3 : 4 : 5."""


@dataclass(frozen=True)
class Dispatch:
    """CPU seconds of every turn; the time of unequal widths over that of equal ones."""

    layer: Layer
    training: bool
    unequal: tuple[float, ...]
    equal: tuple[float, ...]
    ratio: Ratio


def measure_dispatch(
    layers: Sequence[Layer], *, rounds: int, say: Callable[[str], None]
) -> list[Dispatch]:
    """Forward passes, then forward and backward ones, of every layer, both kinds in turns."""
    found = []
    for layer in layers:
        for training in (False, True):
            found.append(_measure(layer, rounds=rounds, training=training))
            kind = "training" if training else "inference"
            say(f"{layer.title}, {kind}: {found[-1].ratio}")
    return found


def balanced_gates(layer: Layer) -> torch.Tensor:
    """Gates fp32 [1, tokens, experts] that send equally many tokens to each expert, in no order.

    Raises ValueError where the tokens cannot be divided so.
    """
    experts = len(layer.widths)
    if layer.tokens * layer.top_k % experts or layer.top_k > experts:
        raise ValueError(f"tokens {layer.tokens}: expected a multiple of {experts} experts")
    first = torch.arange(layer.tokens) % experts
    generator = torch.Generator().manual_seed(_RNG_SEED)
    first = first[torch.randperm(layer.tokens, generator=generator)]
    gates = torch.zeros(layer.tokens, experts)
    for step in range(layer.top_k):
        gates.scatter_(1, ((first + step) % experts)[:, None], 1 / layer.top_k)
    return gates[None]


def _measure(layer: Layer, *, rounds: int, training: bool) -> Dispatch:
    made = {
        UNEQUAL: _ffn(layer, layer.widths),
        EQUAL: _ffn(layer, (layer.equal_width,) * len(layer.widths)),
    }
    gates = balanced_gates(layer)
    generator = torch.Generator().manual_seed(_RNG_SEED)
    inputs = torch.randn(1, layer.tokens, layer.hidden, generator=generator)
    seconds: dict[str, list[float]] = {UNEQUAL: [], EQUAL: []}
    # The first turn warms up.
    for order in turns(list(made), rounds + 1, rng_seed=_RNG_SEED):
        for side in order:
            seconds[side].append(_seconds(made[side], inputs, gates, training=training))
    unequal, equal = seconds[UNEQUAL][1:], seconds[EQUAL][1:]
    return Dispatch(
        layer=layer,
        training=training,
        unequal=tuple(unequal),
        equal=tuple(equal),
        ratio=paired_ratio(unequal, equal),
    )


def _ffn(layer: Layer, widths: tuple[int, ...]) -> HdeeMoeExpertFFN:
    torch.manual_seed(_RNG_SEED)
    return HdeeMoeExpertFFN(
        HdeeMoeConfig(
            hidden_size=layer.hidden,
            num_attention_heads=1,
            expert_names=[f"expert-{number}" for number in range(len(widths))],
            expert_widths=list(widths),
            router="prefix",
        )
    )


def _seconds(
    ffn: HdeeMoeExpertFFN, inputs: torch.Tensor, gates: torch.Tensor, *, training: bool
) -> float:
    began = time.process_time()
    with torch.set_grad_enabled(training):
        for _ in range(_CALLS):
            made, _decision = ffn(inputs, Routes(gates))
            if training:
                made.sum().backward()
    ended = time.process_time()
    ffn.zero_grad(set_to_none=True)
    return ended - began
