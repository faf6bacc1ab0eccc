"""Training low-rank adapters: where it begins, what it changes, what is left after a stop."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.specs import ExpertSpec, Lora
from shared import model as models
from shared.checkpointfiles import tensors_of
from shared.lora import adapter_names, adapter_tensors, is_merged
from shared.shards import BOS_ID, write_shard
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    model_tensors,
    moments_of,
    read_tensors,
    write_tensors,
)
from shared.training.assignment import TrainerAssignment
from worker.trainer import loop
from worker.trainer.lora import adapter_of, attach, write_adapter, write_merged

Assign = Callable[..., TrainerAssignment]
LORA = Lora(rank=4, alpha=8.0)
TIED = {"num_heads": 4, "num_kv_heads": 2, "tied_embeddings": True}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


def lora_spec(make, lora: Lora = LORA, **changes: object) -> ExpertSpec:
    spec = make.spec(parent="0" * 64)
    shape = spec.shape.model_copy(update=changes)
    train = spec.train.model_copy(update={"peak_learning_rate": 1e-2})
    values = {"trains": "lora", "lora": lora, "shape": shape, "train": train}
    return ExpertSpec.model_validate(dict(spec) | values)


@pytest.fixture
def assign(tmp_path: Path) -> Assign:
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(20):
        tokens = np.tile(rng.integers(2, 60, 7), 10)
        texts.append((np.concatenate([[BOS_ID], tokens]), 200))
    write_shard(tmp_path / "train.safetensors", texts, vocab_size=256)

    def build(spec: ExpertSpec, **changes: object) -> TrainerAssignment:
        models.save(models.build(spec.shape, rng_seed=9), tmp_path / "parent.safetensors")
        values: dict[str, object] = {
            "spec": spec,
            "shard": str(tmp_path / "train.safetensors"),
            "parent": str(tmp_path / "parent.safetensors"),
            "parent_shape": spec.shape,
            "resume": None,
            "folder": str(tmp_path / "work"),
            "device": "cpu",
            "num_threads": 1,
            "checkpoint_seconds": 3600.0,
        }
        return TrainerAssignment.model_validate({**values, **changes})

    return build


def run(assignment: TrainerAssignment, *, stop_at: int | None = None) -> None:
    training = loop.load(assignment)
    steps = iter(range(training.state.step, 10**9))
    loop.run(
        training,
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=lambda: stop_at is not None and next(steps) >= stop_at,
    )


def logits_of(model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("changes", [{}, TIED], ids=["plain", "grouped"])
@pytest.mark.parametrize("lora", [LORA, Lora(rank=1, alpha=0.5, projections=("v_proj",))])
def test_a_fresh_adapter_leaves_the_parents_logits_as_they_are(make, lora, changes) -> None:
    spec = lora_spec(make, lora, **changes)
    model = models.build(spec.shape, rng_seed=3)
    tokens = torch.arange(40).reshape(2, 20)
    before = logits_of(model, tokens)
    attach(model, spec)
    assert torch.equal(logits_of(model, tokens), before)
    forms = {name: ("F32", tuple(weight.shape)) for name, weight in adapter_of(model).items()}
    assert forms == adapter_tensors(spec.shape, lora)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in trainable)
    assert len(trainable) == len(forms)


def test_an_adapter_is_drawn_from_its_rng_seed_alone(make) -> None:
    spec = lora_spec(make)
    drawn = []
    for rng_seed in (0, 0, 1):
        torch.rand(7)
        model = models.build(spec.shape, rng_seed=3)
        train = spec.train.model_copy(update={"rng_seed": rng_seed})
        attach(model, spec.model_copy(update={"train": train}))
        drawn.append(next(iter(adapter_of(model).values())).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std().item() == pytest.approx((3 * spec.shape.hidden_size) ** -0.5, rel=0.2)


@pytest.mark.parametrize("changes", [{}, TIED], ids=["plain", "grouped"])
def test_merged_weights_compute_what_weights_and_adapter_do(make, tmp_path: Path, changes) -> None:
    spec = lora_spec(make, **changes)
    model = models.build(spec.shape, rng_seed=3)
    attach(model, spec)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapter_of(model).values():
            weight.normal_(0.0, 0.1, generator=generator)
    write_merged(model, tmp_path / "model.safetensors")
    whole = models.load(tmp_path / "model.safetensors", spec.shape)
    tokens = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(
        logits_of(model, tokens), logits_of(whole, tokens), rtol=1e-5, atol=1e-5
    )


def test_the_expert_is_the_parent_with_its_adapter_added(
    make, assign: Assign, tmp_path: Path
) -> None:
    spec = lora_spec(make, Lora(rank=4, alpha=8.0, projections=("q_proj", "down_proj")))
    run(assign(spec))
    folder = tmp_path / "work" / "expert"
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter.safetensors",
        "model.safetensors",
    ]
    check_file(folder / "model.safetensors", model_tensors(spec.shape))
    check_file(folder / "adapter.safetensors", tensors_of("adapter.safetensors", spec))
    before, after = (
        read_tensors(tmp_path / "parent.safetensors"),
        read_tensors(folder / "model.safetensors"),
    )
    adapter = read_tensors(folder / "adapter.safetensors")
    for name, weight in before.items():
        a, b = adapter_names(name.removesuffix(".weight"))
        if a in adapter:
            assert not np.array_equal(weight, after[name]), name
            assert is_merged(after[name], weight, adapter[a], adapter[b], scale=2.0), name
            assert not is_merged(weight, weight, adapter[a], adapter[b], scale=2.0), name
        else:
            assert np.array_equal(weight, after[name]), name


def test_an_adapter_learns(make, assign: Assign, capsys) -> None:
    spec = lora_spec(make, Lora(rank=8, alpha=16.0))
    train = spec.train.model_copy(update={"num_steps": 80, "schedule_steps": 80})
    run(assign(spec.model_copy(update={"train": train})))
    _, first, *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["loss"] < first["loss"] - 0.03


def test_a_training_that_was_stopped_twice_ends_bit_for_bit_as_one_that_was_not(
    make, assign: Assign, tmp_path: Path
) -> None:
    spec = lora_spec(make)
    straight = tmp_path / "straight"
    run(assign(spec, folder=str(straight)))
    run(assign(spec), stop_at=7)
    folder = tmp_path / "work" / "checkpoints"
    assert sorted(file.name for file in (folder / "step-00000007").iterdir()) == [
        "adapter.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    forms = adapter_tensors(spec.shape, LORA)
    check_file(folder / "step-00000007" / "optimizer.safetensors", moments_of(forms))
    run(assign(spec, resume=str(folder / "step-00000007")), stop_at=12)
    run(assign(spec, resume=str(folder / "step-00000012")))
    for name in ("model.safetensors", "adapter.safetensors"):
        resumed, whole = (root / "expert" / name for root in (tmp_path / "work", straight))
        assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        (Lora(rank=2, alpha=8.0), r"adapter.safetensors: tensor .*lora_A.weight is .*expected"),
        (Lora(rank=4, alpha=8.0, projections=("q_proj",)), "adapter.safetensors: .* not expected"),
    ],
)
def test_a_checkpoint_with_another_adapter_is_refused_by_name(
    make, assign: Assign, tmp_path: Path, lora: Lora, match: str
) -> None:
    run(assign(lora_spec(make)), stop_at=2)
    resume = tmp_path / "work" / "checkpoints" / "step-00000002"
    other = lora_spec(make, lora)
    state = json.loads((resume / "state.json").read_text())
    (resume / "state.json").write_text(json.dumps({**state, "spec": other.digest}))
    with pytest.raises(TensorFileError, match=match):
        loop.load(assign(other, resume=str(resume)))


def test_an_adapter_that_is_not_finite_is_refused_by_name(
    make, assign: Assign, tmp_path: Path
) -> None:
    run(assign(lora_spec(make)), stop_at=2)
    resume = tmp_path / "work" / "checkpoints" / "step-00000002"
    tensors = {
        name: one.copy() for name, one in read_tensors(resume / "adapter.safetensors").items()
    }
    name = adapter_names("model.layers.1.mlp.up_proj")[1]
    tensors[name][3, 1] = np.nan
    write_tensors(resume / "adapter.safetensors", tensors)
    with pytest.raises(TensorFileError, match=r"up_proj.lora_B.weight has NaN"):
        loop.load(assign(lora_spec(make), resume=str(resume)))


def test_an_adapter_begins_at_a_parent_of_its_own_width(make, assign: Assign) -> None:
    spec = lora_spec(make)
    wide = spec.shape.model_copy(update={"ffn_width": 96})
    with pytest.raises(ValueError, match="ffn_width 96: expected 64, as an adapter"):
        assign(spec, parent_shape=wide)


def test_an_adapters_file_is_that_of_its_weights(make, tmp_path: Path) -> None:
    spec = lora_spec(make)
    model = models.build(spec.shape, rng_seed=3)
    attach(model, spec)
    write_adapter(model, tmp_path / "adapter.safetensors")
    tensors = read_tensors(tmp_path / "adapter.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert tensors[name].shape == (32, 4)
    assert not tensors[name].any()
