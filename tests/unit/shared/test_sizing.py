"""Counts that a real model confirms, and how the estimates move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.specs import ExpertSpec, Lora, ModelShape
from shared import model as models
from shared.sizing import (
    adapter_parameters,
    checkpoint_bytes,
    disk_bytes,
    expert_bytes,
    matmul_parameters,
    num_parameters,
    step_flops,
    train_flops,
    training_memory_bytes,
)
from shared.tensorfiles import model_tensors

DEMO = ModelShape(
    vocab_size=4096,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    ffn_width=512,
    context_length=256,
)

shapes = st.builds(
    lambda groups, kv_heads, size, **other: ModelShape(
        num_heads=groups * kv_heads,
        num_kv_heads=kv_heads,
        hidden_size=2 * groups * kv_heads * size,
        **other,
    ),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    size=st.integers(1, 4),
    tied_embeddings=st.booleans(),
    vocab_size=st.integers(4, 40),
    num_layers=st.integers(1, 3),
    ffn_width=st.integers(1, 20),
    context_length=st.integers(1, 16),
)


def spec_of(make, shape: ModelShape, **changes: object) -> ExpertSpec:
    return make.spec().model_copy(update={"shape": shape, **changes})


LORA = Lora(rank=8, alpha=8.0)


def test_an_adapter_costs_its_own_gradients_moments_and_bytes_alone(make) -> None:
    full = spec_of(make, DEMO, kind="expert", parent="0" * 64)
    adapted = full.model_copy(update={"trains": "lora", "lora": LORA})
    trained = adapter_parameters(DEMO, LORA)
    tokens = full.train.tokens_per_step
    # Forward and through the frozen matrices, without gradients of their own.
    saved = 2.0 * matmul_parameters(DEMO) * tokens
    assert step_flops(adapted) == step_flops(full) - saved + 6.0 * trained * tokens
    assert checkpoint_bytes(adapted) - checkpoint_bytes(full) == 12 * (
        trained - num_parameters(DEMO)
    )
    assert 0 < expert_bytes(adapted) - expert_bytes(full) - 4 * trained < 100_000
    assert disk_bytes(adapted) < disk_bytes(full)
    memory = [training_memory_bytes(spec, device="cpu") for spec in (adapted, full)]
    assert memory[0] < memory[1]
    wider = adapted.model_copy(update={"lora": Lora(rank=32, alpha=8.0)})
    assert step_flops(wider) - step_flops(adapted) == 18.0 * trained * tokens


@pytest.mark.parametrize("ffn_width", [1, 48])
def test_parameters_are_those_of_the_real_model(ffn_width: int) -> None:
    shape = DEMO.model_copy(update={"ffn_width": ffn_width, "num_layers": 2})
    model = models.build(shape, rng_seed=0)
    assert num_parameters(shape) == sum(p.numel() for p in model.parameters())
    outside = {"model.embed_tokens.weight"}
    assert matmul_parameters(shape) == sum(
        p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name not in outside
    )


@settings(deadline=None, max_examples=30)
@given(shapes)
def test_counts_are_those_of_the_library_for_any_shape(shape: ModelShape) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(models.llama_config(shape))
    forms = {name: ("F32", tuple(p.shape)) for name, p in model.named_parameters()}
    assert model_tensors(shape) == forms
    assert num_parameters(shape) == model.num_parameters()
    used = {"lm_head.weight": model.lm_head.weight, **dict(model.named_parameters())}
    matrices = [p for name, p in used.items() if p.dim() == 2 and "embed_tokens" not in name]
    assert matmul_parameters(shape) == sum(p.numel() for p in matrices)


@given(shapes)
def test_parameters_are_those_that_a_file_must_hold(shape: ModelShape) -> None:
    total = 0
    for _, form in model_tensors(shape).values():
        size = 1
        for extent in form:
            size *= extent
        total += size
    assert num_parameters(shape) == total


def test_the_papers_medium_model_has_113_million_parameters_in_its_body() -> None:
    medium = ModelShape(
        vocab_size=128_002,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        ffn_width=3072,
        context_length=1024,
    )
    embeddings = 2 * medium.vocab_size * medium.hidden_size
    assert (num_parameters(medium) - embeddings) / 1e6 == pytest.approx(113.3, abs=0.05)
    assert matmul_parameters(medium) / 1e6 == pytest.approx(211.6, abs=0.05)


def test_flops_of_a_step_follow_the_matrix_multiplications(make) -> None:
    spec = spec_of(make, DEMO)
    tokens = spec.train.tokens_per_step
    attention = 6 * 4 * 128 * spec.train.sequence_length * tokens
    assert step_flops(spec) == 6 * matmul_parameters(DEMO) * tokens + attention
    assert train_flops(spec) == spec.train.num_steps * step_flops(spec)


def test_a_nested_step_costs_the_mean_over_its_widths(make) -> None:
    nested = spec_of(make, DEMO, nested_widths=(384, 512))
    narrow = spec_of(make, DEMO.model_copy(update={"ffn_width": 384}))
    assert step_flops(nested) == (step_flops(narrow) + step_flops(spec_of(make, DEMO))) / 2


def test_a_symmetric_choice_of_widths_costs_what_equal_ones_do(make) -> None:
    costs = [
        step_flops(spec_of(make, DEMO.model_copy(update={"ffn_width": width})))
        for width in (384, 512, 640)
    ]
    assert costs[0] + costs[2] == pytest.approx(2 * costs[1], rel=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_memory_grows_with_width_and_with_the_micro_batch(make, device: str) -> None:
    spec = spec_of(make, DEMO)
    wider = spec_of(make, DEMO.model_copy(update={"ffn_width": 640}))
    train = spec.train.model_copy(update={"micro_batch": 2 * spec.train.micro_batch})
    fuller = spec.model_copy(update={"train": train})
    base = training_memory_bytes(spec, device=device)
    assert training_memory_bytes(wider, device=device) > base
    assert training_memory_bytes(fuller, device=device) > base


def test_more_accumulation_costs_no_more_memory(make) -> None:
    spec = spec_of(make, DEMO)
    few, many = (
        spec.model_copy(update={"train": spec.train.model_copy(update={"accumulation": count})})
        for count in (2, 8)
    )
    assert training_memory_bytes(few, device="cpu") == training_memory_bytes(many, device="cpu")


def test_file_sizes_bound_real_files(make, tmp_path) -> None:
    spec = make.spec()
    models.save(models.build(spec.shape, rng_seed=0), tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 4 * num_parameters(spec.shape) < size <= expert_bytes(spec)
    assert checkpoint_bytes(spec) > 3 * size
    assert disk_bytes(spec) > 3 * checkpoint_bytes(spec)
