"""What a router's choices cost: P-Penalty, balance, entropy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.mixing.hub.losses_hdee_moe import (
    balance_loss,
    entropy_loss,
    penalty_loss,
    router_loss,
)

LOGITS = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=12).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32)
)


def top_one(probabilities):
    return torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).float()


@given(logits=LOGITS, width=st.integers(1, 10_000))
def test_with_equal_widths_the_penalty_is_the_balance_loss(logits, width) -> None:
    probabilities = logits.softmax(-1)
    gates = top_one(probabilities)
    assert torch.allclose(
        penalty_loss(probabilities, gates, [width] * 3), balance_loss(probabilities, gates)
    )


@given(logits=LOGITS, widths=st.lists(st.integers(1, 500), min_size=3, max_size=3))
def test_the_penalty_is_what_its_definition_says(logits, widths) -> None:
    probabilities = logits.softmax(-1)
    gates = top_one(probabilities)
    rows, mean = len(logits), sum(widths) / 3
    expected = 0.0
    for expert in range(3):
        used = sum(gates[row, expert].item() > 0 for row in range(rows)) / rows
        chance = sum(probabilities[row, expert].item() for row in range(rows)) / rows
        expected += 3 * used * widths[expert] / mean * chance
    assert penalty_loss(probabilities, gates, widths).item() == pytest.approx(expected, rel=1e-4)


def test_wide_experts_cost_more_than_narrow_ones() -> None:
    narrow, wide = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]])
    widths = [10, 30]
    assert penalty_loss(narrow, top_one(narrow), widths) < penalty_loss(wide, top_one(wide), widths)


def test_even_use_has_the_least_balance_loss() -> None:
    even = torch.eye(4)
    skewed = torch.eye(4)[[0, 0, 0, 1]]
    assert balance_loss(even, even).item() == pytest.approx(1)
    assert balance_loss(skewed, skewed) > 1


@given(logits=LOGITS, factor=st.floats(1.5, 10))
def test_flatter_gates_have_the_larger_entropy(logits, factor) -> None:
    sharp, flat = entropy_loss(logits.softmax(-1)), entropy_loss((logits / factor).softmax(-1))
    assert flat >= sharp - 1e-6
    assert 0 <= sharp <= math.log(3) + 1e-6


def test_a_sure_router_has_no_entropy_and_a_gradient_that_is_finite() -> None:
    logits = torch.tensor([[100.0, 0.0, -100.0]], requires_grad=True)
    loss = entropy_loss(logits.softmax(-1))
    assert loss.item() == pytest.approx(0)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_padded_positions_cost_nothing(mixture_config) -> None:
    config = mixture_config(penalty_weight=0.1, balance_weight=0.02, entropy_weight=0.03)
    probabilities = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    decision = probabilities, top_one(probabilities)
    kept = tuple(torch.cat([tensor[0, 2:], tensor[1]])[None] for tensor in decision)
    assert torch.allclose(router_loss(config, [decision], mask), router_loss(config, [kept], None))
    p, g = (tensor[0] for tensor in kept)
    expected = (
        0.1 * penalty_loss(p, g, [8, 12, 20]) + 0.02 * balance_loss(p, g) + 0.03 * entropy_loss(p)
    )
    assert torch.allclose(router_loss(config, [kept], None), expected)


def test_the_loss_of_a_model_holds_its_routers(tiny_mixture, tokens) -> None:
    ids = tokens(2, 9)
    plain = tiny_mixture(router="linear")(input_ids=ids, labels=ids)
    weighed = tiny_mixture(router="linear", penalty_weight=0.5)(input_ids=ids, labels=ids)
    assert plain.router_loss.item() == 0
    assert weighed.router_loss.item() > 0
    assert torch.allclose(weighed.loss, plain.loss + weighed.router_loss)
