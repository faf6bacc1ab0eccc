"""Weights that are not the parent's with their own adapter added are refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordinator.scoring.adapters import find_unmerged
from protocol.specs import Lora, ModelShape
from shared.lora import adapter_names, adapter_tensors, is_merged, merged
from shared.sizing import adapter_parameters
from shared.tensorfiles import model_tensors

SHAPE = ModelShape(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=24,
    context_length=16,
)
LORA = Lora(rank=3, alpha=6.0, projections=("k_proj", "down_proj"))


def drawn(forms, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=form).astype(np.float32) for name, (_, form) in forms.items()}


PARENT = drawn(model_tensors(SHAPE), 0)
ADAPTER = drawn(adapter_tensors(SHAPE, LORA), 1)


def trained():
    after = dict(PARENT)
    for name in PARENT:
        a, b = adapter_names(name.removesuffix(".weight"))
        if a in ADAPTER:
            after[name] = merged(PARENT[name], ADAPTER[a], ADAPTER[b], scale=LORA.scale)
    return after


def test_the_parent_with_the_adapter_added_is_taken():
    assert len(ADAPTER) == 8
    assert find_unmerged(trained(), PARENT, ADAPTER, LORA) is None


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"]
)
def test_an_adapted_matrix_that_is_another_is_refused_by_name(name):
    after = trained()
    weight = after[f"{name}.weight"].copy()
    weight[2, 3] += 1e-4
    refused = find_unmerged({**after, f"{name}.weight": weight}, PARENT, ADAPTER, LORA)
    assert refused.reason == "its weights are not its parent's with its adapter added"
    assert refused.detail.startswith(f"{name}.weight")
    assert find_unmerged(dict(PARENT), PARENT, ADAPTER, LORA).reason == refused.reason


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_matrix_that_is_not_adapted_stays_the_parents_bit_for_bit(name):
    after = trained()
    flipped = after[name].copy()
    flipped[0, 0] = np.nextafter(flipped[0, 0], np.float32(9))
    refused = find_unmerged({**after, name: flipped}, PARENT, ADAPTER, LORA)
    assert refused.reason == "changed a tensor that its spec freezes"
    assert name in refused.detail


def test_an_adapter_whose_terms_cancel_each_other_passes_no_other_weights():
    rng = np.random.default_rng(0)
    weight, other = (rng.normal(0, 0.02, (8, 4)).astype(np.float32) for _ in range(2))
    a, b = np.full((2, 4), 1e10, np.float32), np.full((8, 2), 1e10, np.float32)
    b[:, 1] = -1e10
    assert is_merged(weight, weight, a, b, scale=1.0)
    assert not is_merged(other, weight, a, b, scale=1.0)


numbers = st.floats(-8, 8, width=32)


@settings(max_examples=60, deadline=None)
@given(
    weight=arrays(np.float32, (5, 4), elements=numbers),
    a=arrays(np.float32, (2, 4), elements=numbers),
    b=arrays(np.float32, (5, 2), elements=numbers),
    scale=st.sampled_from([0.25, 1.0, 7.3]),
)
def test_merging_in_any_precision_from_fp32_on_counts_as_merged(weight, a, b, scale):
    weight[0, 0] = 8
    assert is_merged(merged(weight, a, b, scale=scale), weight, a, b, scale=scale)
    single = weight + np.float32(scale) * (b @ a)
    assert is_merged(single, weight, a, b, scale=scale)
    assert np.array_equal(merged(weight, a, np.zeros_like(b), scale=scale), weight)


@pytest.mark.parametrize("lora", [LORA, Lora(rank=16, alpha=1.0)])
def test_parameters_of_an_adapter_are_those_of_its_tensors(lora):
    forms = adapter_tensors(SHAPE, lora).values()
    assert adapter_parameters(SHAPE, lora) == sum(np.prod(form) for _, form in forms)
