"""The learning rate, nested widths, and Adam over prefixes."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.specs import ExpertSpec, TrainSpec
from shared import model as models
from shared.tensorfiles import is_trained
from worker.trainer.optim import Optimizer, drawn_width, learning_rate

torch.set_num_threads(1)

PAPER = TrainSpec(
    num_steps=500,
    schedule_steps=600,
    warmup_steps=50,
    peak_learning_rate=6e-5,
    final_learning_rate=3e-5,
    micro_batch=1,
    accumulation=1,
    sequence_length=8,
    clip_norm=1.0,
    rng_seed=0,
    compile=False,
)


@st.composite
def recipes(draw: st.DrawFn) -> TrainSpec:
    schedule = draw(st.integers(1, 300))
    peak = draw(st.floats(1e-6, 1))
    return PAPER.model_copy(
        update={
            "num_steps": draw(st.integers(1, schedule)),
            "schedule_steps": schedule,
            "warmup_steps": draw(st.integers(0, schedule)),
            "peak_learning_rate": peak,
            "final_learning_rate": peak * draw(st.floats(0, 1)),
        }
    )


@given(recipes())
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(train: TrainSpec) -> None:
    rates = [learning_rate(train, update) for update in range(1, train.schedule_steps + 1)]
    warmup, peak, final = train.warmup_steps, train.peak_learning_rate, train.final_learning_rate
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates if final > 0)
    assert rates[:warmup] == sorted(rates[:warmup])
    after = rates[max(0, warmup - 1) :]
    assert all(a >= b - 1e-15 for a, b in pairwise(after))
    if warmup:
        assert rates[warmup - 1] == peak
    if warmup < train.schedule_steps:
        assert rates[-1] == pytest.approx(final, abs=1e-15)


@pytest.mark.parametrize(("update", "rate"), [(300, 4.71e-5), (400, 3.88e-5), (500, 3.24e-5)])
def test_the_papers_checkpoints_are_taken_at_the_papers_rates(update: int, rate: float) -> None:
    assert learning_rate(PAPER, update) == pytest.approx(rate, abs=5e-8)


def nested_spec(make, **train: object) -> ExpertSpec:
    spec = make.spec(ffn_width=48)
    return spec.model_copy(
        update={
            "nested_widths": (16, 32, 48),
            "train": spec.train.model_copy(
                update={"num_steps": 400, "schedule_steps": 400, **train}
            ),
        }
    )


def test_each_width_is_drawn_about_equally_often_and_repeatably(make) -> None:
    spec = nested_spec(make)
    draws = [drawn_width(spec, step) for step in range(600)]
    assert draws == [drawn_width(spec, step) for step in range(600)]
    counts = Counter(draws)
    assert counts.keys() == {16, 32, 48}
    assert all(150 < count < 250 for count in counts.values())
    assert draws != [drawn_width(nested_spec(make, rng_seed=1), step) for step in range(600)]
    assert draws[:6] == [16, 32, 16, 32, 48, 32]


def test_a_spec_that_is_not_nested_trains_its_full_width(make) -> None:
    assert {drawn_width(make.spec(), step) for step in range(20)} == {make.spec().shape.ffn_width}


@pytest.mark.parametrize(
    ("trains", "trained"),
    [
        ("all", {"embed_tokens", "mlp", "self_attn", "input_layernorm", "norm", "lm_head"}),
        ("ffn", {"mlp"}),
        ("ffn_embeddings", {"embed_tokens", "mlp", "lm_head"}),
    ],
)
def test_what_a_spec_trains(trains, trained: set[str]) -> None:
    names = {
        "embed_tokens": "model.embed_tokens.weight",
        "mlp": "model.layers.0.mlp.up_proj.weight",
        "self_attn": "model.layers.0.self_attn.q_proj.weight",
        "input_layernorm": "model.layers.0.input_layernorm.weight",
        "norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    }
    assert {part for part, name in names.items() if is_trained(trains, name)} == trained


def set_gradients(model, *, rng_seed: int, width: int) -> None:
    """Random gradients, zero outside the prefix, as `ffn_prefix` leaves them."""
    generator = torch.Generator().manual_seed(rng_seed)
    for name, weight in model.named_parameters():
        gradient = torch.randn(weight.shape, generator=generator)
        if "gate_proj" in name or "up_proj" in name:
            gradient[width:] = 0
        elif "down_proj" in name:
            gradient[:, width:] = 0
        weight.grad = gradient


def copy_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_features_outside_the_prefix_keep_their_values_and_moments(make) -> None:
    spec = nested_spec(make)
    model = models.build(spec.shape, rng_seed=0)
    optimizer = Optimizer(model, spec)
    moved = Counter()
    for step in range(12):
        width = drawn_width(spec, step)
        before, moments = copy_of(model), {k: v.copy() for k, v in optimizer.moments().items()}
        set_gradients(model, rng_seed=step, width=width)
        optimizer.step(step)
        after, later = copy_of(model), optimizer.moments()
        for name in before:
            rows = slice(width, None) if "_proj" in name and "mlp" in name else slice(0, 0)
            index = (slice(None), rows) if "down_proj" in name else (rows,)
            assert torch.equal(before[name][index], after[name][index])
            key = f"exp_avg.{name}"
            assert (moments[key][index] == later[key][index]).all()
            assert not torch.equal(before[name], after[name])
        moved[width] += 1
    assert len(moved) == 3


def test_a_prefix_moves_as_adam_moves_a_model_of_that_width(make) -> None:
    """The block that only wide draws reach is updated as often as it is drawn, no more."""
    spec = nested_spec(make, clip_norm=0.0)
    model = models.build(spec.shape, rng_seed=0)
    optimizer = Optimizer(model, spec)
    weight = model.model.layers[0].mlp.up_proj.weight
    alone = torch.nn.Parameter(weight.detach()[32:].clone())
    adam = torch.optim.Adam([alone], lr=0.0)
    for step in range(15):
        width = drawn_width(spec, step)
        set_gradients(model, rng_seed=step, width=width)
        if width == 48:
            alone.grad = weight.grad[32:].clone()
            adam.param_groups[0]["lr"] = learning_rate(spec.train, step + 1)
            adam.step()
        optimizer.step(step)
    assert torch.allclose(weight.detach()[32:], alone.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("nested", [False, True])
def test_a_restored_optimizer_goes_on_bit_for_bit(make, nested: bool) -> None:
    spec = nested_spec(make) if nested else make.spec()
    straight = models.build(spec.shape, rng_seed=0)
    optimizer = Optimizer(straight, spec)
    for step in range(10):
        if step == 4:
            saved = {name: value.copy() for name, value in optimizer.moments().items()}
            weights = copy_of(straight)
        set_gradients(straight, rng_seed=step, width=drawn_width(spec, step))
        optimizer.step(step)
    resumed = models.build(spec.shape, rng_seed=0)
    resumed.load_state_dict(weights)
    second = Optimizer(resumed, spec)
    second.restore(saved, step=4)
    for step in range(4, 10):
        set_gradients(resumed, rng_seed=step, width=drawn_width(spec, step))
        second.step(step)
    expected = copy_of(straight)
    assert all(torch.equal(expected[name], tensor) for name, tensor in copy_of(resumed).items())
    for name, moment in optimizer.moments().items():
        assert (second.moments()[name] == moment).all()


def test_gradients_are_clipped_by_their_common_norm(make) -> None:
    spec = make.spec()
    clipped, free = (models.build(spec.shape, rng_seed=0) for _ in range(2))
    unclipped = spec.model_copy(update={"train": spec.train.model_copy(update={"clip_norm": 0.0})})
    norms, moments = [], []
    for model, recipe in ((clipped, spec), (free, unclipped)):
        optimizer = Optimizer(model, recipe)
        set_gradients(model, rng_seed=0, width=spec.shape.ffn_width)
        norms.append(optimizer.step(0))
        moments.append(optimizer.moments()["exp_avg.lm_head.weight"])
    assert norms[0] == norms[1] > 10
    assert moments[0] * norms[0] == pytest.approx(moments[1], rel=1e-4)


def test_a_gradient_that_is_not_finite_moves_nothing(make) -> None:
    spec = make.spec()
    model = models.build(spec.shape, rng_seed=0)
    before = copy_of(model)
    optimizer = Optimizer(model, spec)
    set_gradients(model, rng_seed=0, width=spec.shape.ffn_width)
    model.lm_head.weight.grad[0, 0] = float("nan")
    assert not optimizer.step(0) < float("inf")
    assert all(torch.equal(before[name], tensor) for name, tensor in copy_of(model).items())
    assert not any(moment.any() for moment in optimizer.moments().values())
