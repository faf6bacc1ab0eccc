"""What a training of a mixture refuses before its first step, by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tunables

from shared.shards import ShardError, write_shard
from shared.tensorfiles import TensorFileError, read_tensors, write_tensors
from shared.training.assignment import BadInput
from worker.trainer import loop
from worker.trainer import mixture as mixtures
from worker.trainer.failures import classify


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return tunables.mixture(tmp_path)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tunables.shard(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"trains": "head"}, "trains"),
        ({"losses": {"penalty": -1.0}}, "losses.penalty"),
        ({"losses": {"weight": 1.0}}, "losses.weight"),
        ({"train": {"num_steps": 0}}, "num_steps 0: expected at least 1"),
        ({"train": {"compile": True}}, "compile True: expected False"),
        ({"num_threads": 0}, "num_threads"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds"),
        ({"device": "tpu"}, "device"),
        ({"token": "secret"}, "token"),
        ({"resume": ""}, "resume"),
    ],
)
def test_an_assignment_with_a_wrong_field_is_refused_by_its_name(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        tunables.assignment(tmp_path / "m", tmp_path / "s", **changes)


def router(kind: str, **changes: Any) -> dict[str, Any]:
    return {"router": {"kind": kind, **changes}}


@pytest.mark.parametrize(
    ("recipe", "changes", "match"),
    [
        (tunables.PREFIX, {}, "trains 'router': a prefix router has no weights"),
        (router("gateless"), {}, "trains 'router': a gateless router has no weights"),
        (tunables.PREFIX, {"trains": "all", "losses": {"penalty": 0.1}}, "losses .*penalty=0.1"),
        (router("linear", selection="top_k", top_k=1), {}, "gate_top_k 1: .*learns nothing"),
        (tunables.LINEAR, {"train": {"sequence_length": 33}}, "sequence_length 33: .* of 32"),
    ],
)
def test_a_training_that_could_change_nothing_is_refused(
    tmp_path: Path, shard: Path, recipe: dict[str, Any], changes: dict[str, Any], match: str
) -> None:
    mixture = tunables.mixture(tmp_path, recipe)
    with pytest.raises(BadInput, match=match) as caught:
        mixtures.load(tunables.assignment(mixture, shard, **changes))
    assert classify(caught.value) == "bad_input"


def test_a_table_that_was_counted_cannot_be_asked_for_but_its_mixture_can_be_trained(
    tmp_path: Path, shard: Path
) -> None:
    mixture = tunables.mixture(tmp_path, tunables.PREFIX)
    training = mixtures.load(tunables.assignment(mixture, shard, trains="router_attention"))
    assert all("self_attn" in name for name in training.optimizer.weights)


def change(folder: Path, file: str, name: str, value: float | None) -> None:
    tensors = {key: tensor.copy() for key, tensor in read_tensors(folder / file).items()}
    if value is None:
        del tensors[name]
    else:
        tensors[name].reshape(-1)[:1] = value
    write_tensors(folder / file, tensors)


ROUTER = "model.layers.0.mlp.router.weight"


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda f: (f / "state.json").write_text("{}"), BadInput, "state.json"),
        (lambda f: (f / "state.json").unlink(), FileNotFoundError, "state.json"),
        (
            lambda f: change(f, "trained.safetensors", ROUTER, None),
            TensorFileError,
            "router.weight' is missing",
        ),
        (
            lambda f: change(f, "trained.safetensors", ROUTER, float("nan")),
            TensorFileError,
            "router.weight has NaN",
        ),
        (
            lambda f: change(f, "optimizer.safetensors", f"exp_avg_sq.{ROUTER}", -1.0),
            BadInput,
            "router.weight has negative",
        ),
        (
            lambda f: change(f, "optimizer.safetensors", f"updates.{ROUTER}", 3),
            BadInput,
            "router.weight: 3, expected from 0 to 2",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, mixture: Path, shard: Path, damage, error: type[Exception], match: str
) -> None:
    resume = tmp_path / "resume"
    shutil.copytree(tunables.stopped(tunables.assignment(mixture, shard), at=2), resume)
    damage(resume)
    with pytest.raises(error, match=match) as caught:
        mixtures.load(tunables.assignment(mixture, shard, resume=str(resume)))
    assert classify(caught.value) == "bad_input"


def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, mixture: Path, shard: Path
) -> None:
    resume = str(tunables.stopped(tunables.assignment(mixture, shard), at=2))
    other = tunables.shard(tmp_path, name="other", rng_seed=1)
    config = tmp_path / "configured"
    shutil.copytree(mixture, config)
    values = json.loads((config / "config.json").read_bytes())
    (config / "config.json").write_text(json.dumps({**values, "threshold": 0.02}))
    for assignment in (
        tunables.assignment(mixture, other, resume=resume),
        tunables.assignment(config, shard, resume=resume),
        tunables.assignment(mixture, shard, resume=resume, trains="all"),
        tunables.assignment(mixture, shard, resume=resume, losses={"balance": 1.0}),
        tunables.assignment(mixture, shard, resume=resume, train={"rng_seed": 1}),
    ):
        with pytest.raises(BadInput, match="checkpoint of spec"):
            mixtures.load(assignment)


def test_what_is_no_mixture_or_no_text_for_it_is_refused(
    tmp_path: Path, mixture: Path, shard: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json") as caught:
        mixtures.load(tunables.assignment(tmp_path / "nowhere", shard))
    assert classify(caught.value) == "bad_input"
    short = tunables.shard(tmp_path, name="short", documents=1)
    with pytest.raises(ShardError, match="for one batch"):
        mixtures.load(tunables.assignment(mixture, short))
    foreign = tmp_path / "foreign.safetensors"
    write_shard(foreign, [(np.full(300, 7), 300)], vocab_size=300)
    with pytest.raises(BadInput, match="begin with token 7, expected the mixture's BOS, 1"):
        mixtures.load(tunables.assignment(mixture, foreign))
    change(mixture, "model.safetensors", ROUTER, float("inf"))
    with pytest.raises(TensorFileError, match=r"router\.weight has NaN or infinite"):
        mixtures.load(tunables.assignment(mixture, shard))
