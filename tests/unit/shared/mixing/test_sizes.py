"""Parameters and FLOPs of a mixture: those of the model itself, counted by torch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from shared.mixing.hub.configuration_hdee_moe import OWNABLE, HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.sizes import mixture_sizes
from shared.mixing.widths import preset_widths, proportional_widths

CONFIGS = {
    "prefix": {},
    "all owned": {"owned": list(OWNABLE)},
    "lexical": {"owned": ["embeddings", "head"]},
    "tied": {"tie_word_embeddings": True},
    "some layers": {"expert_layers": [1], "base_width": 7},
    "linear": {"router": "linear", "router_bias": True},
    "global": {"router": "global", "router_bias": True},
    "fine": {"router": "fine"},
    "deep": {"router": "deep", "router_hidden_size": 5},
    "gateless": {"router": "gateless"},
}


def config_of(**changes) -> HdeeMoeConfig:
    values = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "expert_names": ["wide", "narrow", "middle"],
        "expert_widths": [24, 8, 13],
    }
    return HdeeMoeConfig(**{**values, **changes})


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_those_of_the_model(changes):
    config = config_of(**changes)
    model, sizes = HdeeMoeForCausalLM(config), mixture_sizes(config)
    assert sizes.parameters == sum(one.numel() for one in model.parameters())
    for number, size in enumerate(sizes.experts):
        own = [
            one.numel() for name, one in model.named_parameters() if f".experts.{number}." in name
        ]
        assert size.parameters == sum(own)
    assert sizes.active_parameters([1, 1, 1]) == sizes.parameters
    assert sizes.active_parameters([0, 0, 0]) == sizes.shared.parameters


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("expert", [0, 1])
def test_flops_are_those_that_torch_counts(changes, expert):
    config = config_of(**changes)
    model, sizes, length = HdeeMoeForCausalLM(config).eval(), mixture_sizes(config), 12
    tokens = torch.full((1, length), 3)
    gates = model.forced(expert, like=tokens)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, gates=gates, use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    matrices = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}
    counted = sum(count for kind, count in counts.items() if kind in matrices)
    rotary = config.hidden_size // config.num_attention_heads * length
    weights = length * sizes.flops(sizes.alone(expert), context=0)
    routers = sum(one.shared.multiplied for one in sizes.layers) - _without_router(config)
    # gates that are given replace the router, which is not computed then
    assert counted == pytest.approx(weights - 2 * length * routers, abs=rotary)


def _without_router(config: HdeeMoeConfig) -> int:
    plain = mixture_sizes(config_of(**{**_kept(config), "router": "prefix", "router_bias": False}))
    return plain.shared.multiplied


def _kept(config: HdeeMoeConfig) -> dict:
    fields = ("owned", "tie_word_embeddings", "expert_layers", "base_width")
    return {field: getattr(config, field) for field in fields}


def test_an_expert_that_is_always_on_is_paid_for_beside_the_other():
    sizes = mixture_sizes(config_of(always_on=1))
    assert sizes.alone(0) == (1, 1, 0)
    assert sizes.alone(1) == (0, 1, 0)
    extra = sizes.flops(sizes.alone(0), context=8) - sizes.flops([1, 0, 0], context=8)
    assert extra == 2 * 2 * 3 * 16 * 8


def test_attention_costs_scores_and_values_over_half_the_context():
    sizes = mixture_sizes(config_of())
    usage = sizes.alone(0)
    assert sizes.flops(usage, context=32) - sizes.flops(usage, context=0) == 2 * 2 * 16 * 32


@pytest.mark.parametrize("usage", [[1, 0], [1, 0, 2], [1, 0, -0.5], [1, 0, math.nan]])
def test_a_usage_of_other_experts_is_refused(usage):
    with pytest.raises(ValueError, match="for each of 3 experts"):
        mixture_sizes(config_of()).active_parameters(usage)


def test_presets_are_those_of_the_paper():
    arithmetic = preset_widths("arithmetic", num_experts=8, total_width=32768)
    assert arithmetic == tuple(range(2304, 5889, 512))
    geometric = preset_widths("geometric", num_experts=8, total_width=255 * 64, multiple=64)
    assert geometric == tuple(64 * 2**power for power in range(8))
    hybrid = preset_widths("hybrid", num_experts=8, total_width=1600)
    assert hybrid == (100, 100, 100, 100, 200, 200, 400, 400)
    assert preset_widths("equal", num_experts=3, total_width=10) == (3, 3, 4)


@given(
    preset=st.sampled_from(["equal", "arithmetic", "geometric", "hybrid"]),
    count=st.integers(4, 9),
    units=st.integers(600, 5000),
    multiple=st.sampled_from([1, 8, 64]),
)
def test_widths_ascend_and_add_up_to_the_total(preset, count, units, multiple):
    total = units * multiple
    widths = preset_widths(preset, num_experts=count, total_width=total, multiple=multiple)
    assert sum(widths) == total
    assert list(widths) == sorted(widths)
    assert all(width % multiple == 0 and width > 0 for width in widths)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: preset_widths("hybrid", num_experts=3, total_width=64), "num_experts 3"),
        (lambda: preset_widths("equal", num_experts=0, total_width=64), "num_experts 0"),
        (lambda: preset_widths("square", num_experts=2, total_width=64), "preset 'square'"),
        (lambda: preset_widths("geometric", num_experts=8, total_width=64), "total_width 64: too"),
        (
            lambda: preset_widths("equal", num_experts=2, total_width=60, multiple=8),
            "multiple of 8",
        ),
        (lambda: proportional_widths([1, -1], total_width=64), r"relative \[1, -1\]"),
    ],
)
def test_widths_that_cannot_be_are_refused_by_name(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()
