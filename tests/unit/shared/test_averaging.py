"""The mean of checkpoints' weights: exact, as wide as the widest, whole or not at all."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.specs import ModelShape
from shared.averaging import Source, average_files
from shared.model import build, ffn_prefix, load, save
from shared.tensorfiles import TensorFileError, read_tensors, write_tensors

SHAPE = ModelShape(
    vocab_size=40, hidden_size=8, num_layers=2, num_heads=2, ffn_width=12, context_length=16
)
GATE, DOWN = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"
ATTENTION = "model.layers.0.self_attn.q_proj.weight"


def checkpoint(folder: Path, rng_seed: int, width: int = 12) -> Path:
    path = folder / f"{rng_seed}-{width}.safetensors"
    save(build(SHAPE.model_copy(update={"ffn_width": width}), rng_seed=rng_seed), path)
    return path


def average(target: Path, *parts: tuple[Path, float]) -> dict[str, np.ndarray]:
    average_files([Source(path, share) for path, share in parts], target)
    return read_tensors(target)


@settings(max_examples=15, deadline=None)
@given(shares=st.lists(st.floats(0.01, 50), min_size=1, max_size=4))
def test_every_weight_is_the_weighted_mean_in_double_precision(
    tmp_path_factory: pytest.TempPathFactory, shares: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("mean")
    paths = [checkpoint(folder, number) for number in range(len(shares))]
    found = average(folder / "mean", *zip(paths, shares, strict=True))
    sources = [read_tensors(path) for path in paths]
    assert found.keys() == sources[0].keys()
    for name, tensor in found.items():
        expected = np.average([one[name].astype(np.float64) for one in sources], 0, shares)
        assert tensor.dtype == np.float32
        assert np.allclose(tensor, expected, rtol=1e-7, atol=1e-12)


def test_one_checkpoint_alone_and_copies_of_it_are_that_checkpoint(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    for parts in ([(path, 0.3)], [(path, 0.25)] * 4):
        found = average(tmp_path / "mean", *parts)
        for name, tensor in read_tensors(path).items():
            assert np.array_equal(found[name], tensor)


def test_unequal_widths_average_each_unit_over_those_that_have_it(tmp_path: Path) -> None:
    narrow, wide = checkpoint(tmp_path, 1, width=6), checkpoint(tmp_path, 2, width=12)
    found = average(tmp_path / "mean", (narrow, 3.0), (wide, 1.0))
    of_narrow, of_wide = read_tensors(narrow), read_tensors(wide)
    assert found[GATE].shape == (12, 8)
    assert np.allclose(found[GATE][:6], 0.75 * of_narrow[GATE] + 0.25 * of_wide[GATE][:6])
    assert np.array_equal(found[GATE][6:], of_wide[GATE][6:])
    assert np.allclose(found[DOWN][:, :6], 0.75 * of_narrow[DOWN] + 0.25 * of_wide[DOWN][:, :6])
    assert np.array_equal(found[DOWN][:, 6:], of_wide[DOWN][:, 6:])
    assert np.allclose(found[ATTENTION], 0.75 * of_narrow[ATTENTION] + 0.25 * of_wide[ATTENTION])


def test_prefixes_of_one_nested_seed_average_to_that_seed(tmp_path: Path) -> None:
    seed = build(SHAPE, rng_seed=3)
    save(seed, tmp_path / "wide")
    narrow_shape = SHAPE.model_copy(update={"ffn_width": 6})
    save(load(tmp_path / "wide", narrow_shape), tmp_path / "narrow")
    average(tmp_path / "mean", (tmp_path / "narrow", 0.5), (tmp_path / "wide", 0.5))
    mean = load(tmp_path / "mean", SHAPE)
    tokens = torch.tensor([[1, 5, 9, 30]])
    with torch.inference_mode():
        assert torch.equal(mean(tokens).logits, seed(tokens).logits)
        with ffn_prefix(seed, 6):
            assert torch.equal(
                load(tmp_path / "mean", narrow_shape)(tokens).logits, seed(tokens).logits
            )


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    parts = [(checkpoint(tmp_path, number), 0.1 * (number + 1)) for number in range(3)]
    average(tmp_path / "one", *parts)
    average(tmp_path / "two", *parts)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    parts = []
    for number in range(4):
        path = tmp_path / str(number)
        rng = np.random.default_rng(number)
        write_tensors(path, {f"{n}": rng.random((256, 512), dtype=np.float32) for n in range(20)})
        parts.append(Source(path, 1.0))
    tracemalloc.start()
    average_files(parts, tmp_path / "mean")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 8 * 256 * 512, "a file is 20 tensors, and there are four of them"


def rewritten(path: Path, **changed: np.ndarray | None) -> Path:
    tensors = read_tensors(path) | changed
    target = path.with_suffix(".changed")
    write_tensors(target, {name: one for name, one in tensors.items() if one is not None})
    return target


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({ATTENTION: np.zeros((8, 9), np.float32)}, "q_proj.weight: shapes .8, 8. and .8, 9."),
        ({ATTENTION: None}, "q_proj.weight: in one of"),
        ({ATTENTION: np.zeros((8, 8), np.int64)}, "q_proj.weight: dtype I64"),
        ({GATE: np.zeros((12, 9), np.float32)}, "gate_proj.weight: shapes"),
        ({GATE: np.zeros((12, 8, 1), np.float32)}, "gate_proj.weight: shapes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path, changed, match) -> None:
    path = checkpoint(tmp_path, 1)
    with pytest.raises(TensorFileError, match=match):
        average(tmp_path / "mean", (path, 1.0), (rewritten(path, **changed), 1.0))
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=r"share .* expected above 0"):
        average(tmp_path / "mean", (checkpoint(tmp_path, 1), share))
    with pytest.raises(ValueError, match="sources: got none"):
        average(tmp_path / "mean")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, 1)

    def fail(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        average(tmp_path / "mean", (path, 1.0))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
