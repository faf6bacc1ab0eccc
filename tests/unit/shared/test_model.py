"""Models of a shape: built the same each time, saved, narrowed, computed with a prefix."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.specs import ModelShape
from shared import model as models
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    model_tensors,
    read_tensors,
    write_tensors,
)

SHAPE = ModelShape(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_width=24,
    context_length=16,
)
GROUPED = SHAPE.model_copy(
    update={
        "num_heads": 4,
        "num_kv_heads": 2,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-5,
        "tied_embeddings": True,
    }
)
INPUTS = torch.arange(2, 22).reshape(2, 10)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUTS, use_cache=False).logits


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shape", [SHAPE, GROUPED], ids=["plain", "grouped"])
def test_names_and_forms_are_those_of_the_real_model(shape: ModelShape) -> None:
    model = models.build(shape, rng_seed=0)
    real = {name: ("F32", tuple(p.shape)) for name, p in model.named_parameters()}
    assert real == model_tensors(shape)


def test_a_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = weights(models.build(SHAPE, rng_seed=5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = weights(models.build(SHAPE, rng_seed=5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(models.build(SHAPE, rng_seed=6))
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert (first["model.norm.weight"] == 1).all()


@pytest.mark.parametrize("shape", [SHAPE, GROUPED], ids=["plain", "grouped"])
def test_a_fresh_model_computes_what_the_librarys_own_does(shape: ModelShape) -> None:
    ours = models.build(shape, rng_seed=0)
    theirs = type(ours)(models.llama_config(shape))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("shape", [SHAPE, GROUPED], ids=["plain", "grouped"])
def test_a_saved_model_loads_bit_for_bit(tmp_path: Path, shape: ModelShape) -> None:
    model = models.build(shape, rng_seed=0)
    models.save(model, tmp_path / "m.safetensors")
    check_file(tmp_path / "m.safetensors", model_tensors(shape))
    loaded = models.load(tmp_path / "m.safetensors", shape)
    before = weights(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(loaded).items())
    assert torch.equal(logits(model), logits(loaded))


def test_a_wider_file_is_narrowed_to_its_prefix(tmp_path: Path) -> None:
    model = models.build(SHAPE, rng_seed=0)
    models.save(model, tmp_path / "m.safetensors")
    narrow = models.load(tmp_path / "m.safetensors", SHAPE.model_copy(update={"ffn_width": 16}))
    before = weights(model)
    for name, tensor in weights(narrow).items():
        extents = tuple(slice(0, extent) for extent in tensor.shape)
        assert torch.equal(tensor, before[name][extents])
    assert narrow.config.intermediate_size == 16
    with models.ffn_prefix(model, 16):
        assert torch.allclose(logits(model), logits(narrow), atol=1e-6)
    assert not torch.allclose(logits(model), logits(narrow), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ffn_width": 32}, "width 24, expected at least 32"),
        ({"hidden_size": 32}, "is"),
        ({"vocab_size": 65}, "embed_tokens"),
        ({"num_layers": 3}, "missing"),
        ({"num_layers": 1}, "not expected"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    tmp_path: Path, change: dict[str, int], match: str
) -> None:
    models.save(models.build(SHAPE, rng_seed=0), tmp_path / "m.safetensors")
    with pytest.raises(TensorFileError, match=match):
        models.load(tmp_path / "m.safetensors", SHAPE.model_copy(update=change))


def test_a_file_without_ffns_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m.safetensors", {"x": np.zeros(2, np.float32)})
    with pytest.raises(TensorFileError, match=r"gate_proj\.weight is missing"):
        models.load(tmp_path / "m.safetensors", SHAPE)


def test_gradients_of_a_prefix_stop_at_its_end() -> None:
    model = models.build(SHAPE, rng_seed=0)
    with models.ffn_prefix(model, 10):
        model(input_ids=INPUTS, labels=INPUTS, use_cache=False).loss.backward()
    mlp = model.model.layers[0].mlp
    for gradient in (mlp.gate_proj.weight.grad, mlp.up_proj.weight.grad):
        assert gradient[:10].abs().min() > 0
        assert not gradient[10:].any()
    assert mlp.down_proj.weight.grad[:, :10].abs().min() > 0
    assert not mlp.down_proj.weight.grad[:, 10:].any()


@pytest.mark.parametrize("width", [0, 25])
def test_a_prefix_that_is_not_there_is_refused(width: int) -> None:
    with (
        pytest.raises(ValueError, match=f"width {width}"),
        models.ffn_prefix(models.build(SHAPE, rng_seed=0), width),
    ):
        pass


def test_a_model_made_elsewhere_has_no_prefix() -> None:
    ours = models.build(SHAPE, rng_seed=0)
    theirs = type(ours)(models.llama_config(SHAPE))
    with pytest.raises(TypeError, match="have no prefix"), models.ffn_prefix(theirs, 3):
        pass


def test_the_full_width_is_back_after_an_error() -> None:
    model = models.build(SHAPE, rng_seed=0)
    before = logits(model)
    with pytest.raises(KeyError), models.ffn_prefix(model, 3):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_a_saved_model_holds_fp32_and_nothing_half_written(tmp_path: Path) -> None:
    models.save(models.build(SHAPE, rng_seed=0), tmp_path / "m.safetensors")
    assert all(t.dtype == np.float32 for t in read_tensors(tmp_path / "m.safetensors").values())
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]
