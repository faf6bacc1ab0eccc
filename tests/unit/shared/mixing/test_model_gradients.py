"""Training a mixture: gradients reach router and experts, with checkpointing the same ones."""

import pytest
import torch

from shared.mixing.hub.configuration_hdee_moe import OWNABLE

KINDS = [
    {"router": "prefix", "owned": list(OWNABLE), "prefix_sharpness": 0.02},
    {"router": "gateless", "owned": list(OWNABLE)},
    {"router": "linear", "selection": "top_k", "router_bias": True},
    {"router": "global", "selection": "top_p", "gate_top_p": 0.9},
    {"router": "fine"},
    {"router": "deep", "router_hidden_size": 5},
]
WEIGHTS = {"penalty_weight": 0.1, "balance_weight": 0.1, "entropy_weight": 0.1}


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("changes", KINDS)
def test_gradients_reach_every_expert_and_the_router(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes, **WEIGHTS).train()
    found = gradients(model, tokens(4, 20))
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert [name for name, gradient in found.items() if not gradient.any()] == []
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("changes", KINDS)
def test_checkpointing_gives_the_same_gradients(tiny_mixture, tokens, changes) -> None:
    model = tiny_mixture(**changes, **WEIGHTS).train()
    ids = tokens(3, 12)
    expected = gradients(model, ids)
    model.activation_checkpointing_enable()
    assert model.model.layers[0].gradient_checkpointing
    for name, gradient in gradients(model, ids).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_gates_that_are_given_carry_gradients(tiny_mixture, tokens) -> None:
    model = tiny_mixture(owned=list(OWNABLE))
    ids = tokens(2, 9)
    logits = torch.zeros(3, requires_grad=True)
    model(input_ids=ids, labels=ids, gates=logits.softmax(-1)).loss.backward()
    assert logits.grad.abs().min() > 0


def test_a_gradient_is_the_slope_of_the_loss(tiny_mixture, tokens) -> None:
    model = tiny_mixture(router="linear", threshold=0.0, entropy_weight=0.1).double().train()
    ids = tokens(2, 9)
    weight = model.model.layers[0].mlp.router.weight
    slope = gradients(model, ids)["model.layers.0.mlp.router.weight"][1, 3]
    step = 0.02
    losses = []
    with torch.no_grad():
        for move in (step, -2 * step):
            weight[1, 3] += move
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope.item(), rel=0.05, abs=1e-4)
