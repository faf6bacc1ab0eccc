"""A mixture's steps: their loss, and where they stop and go on."""

import json
from pathlib import Path
from typing import Any

import mixables
import numpy as np
import pytest
import torch
import tunables

from shared.mixing.facts import Tuning
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.tuning import newest_checkpoint, trained_tensors
from shared.shards import BOS_ID, write_shard
from shared.tensorfiles import check_file, read_tensors, write_tensors
from shared.training.assignment import MixtureAssignment
from worker.trainer import loop
from worker.trainer import mixture as mixtures

ONE: dict[str, Any] = {"router": {"kind": "prefix", "selection": "top_k", "top_k": 1}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return tunables.mixture(tmp_path)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tunables.shard(tmp_path)


def result(assignment: MixtureAssignment) -> bytes:
    return (Path(assignment.folder) / "trained" / "trained.safetensors").read_bytes()


def losses(assignment: MixtureAssignment, *, micro_batch: int | None = None) -> list[float]:
    stepper = loop.Stepper(mixtures.load(assignment))
    stepper.micro_batch = micro_batch or stepper.micro_batch
    return [stepper.step(step) for step in range(assignment.train.num_steps)]


@pytest.mark.parametrize(
    ("recipe", "owns", "trains"),
    [
        (tunables.LINEAR, "ffn", "all"),
        ({"router": {"kind": "deep", "hidden_size": 8}}, "ffn", "router_attention"),
        (tunables.PREFIX, "all", "all"),
        (ONE, "ffn_embeddings", "all"),
    ],
)
def test_a_training_that_was_stopped_ends_bit_for_bit_as_if_it_had_not_been(
    tmp_path: Path, shard: Path, recipe: dict[str, Any], owns: str, trains: str
) -> None:
    mixture = tunables.mixture(tmp_path, recipe, trains=owns)
    assignment = tunables.assignment(mixture, shard, trains=trains)
    assert newest_checkpoint(Path(assignment.folder)) is None
    resume = tunables.stopped(assignment, at=2)
    assert sorted(file.name for file in resume.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "trained.safetensors",
    ]
    again = tunables.stopped(assignment.model_copy(update={"resume": str(resume)}), at=4)
    tunables.run(assignment.model_copy(update={"resume": str(again)}))
    straight = assignment.model_copy(update={"folder": str(tmp_path / "straight")})
    tunables.run(straight)
    assert result(assignment) == result(straight)


def test_an_expert_that_no_text_goes_through_stays_as_it_is_through_a_stop(
    tmp_path: Path,
) -> None:
    """Its text comes late in the order: it is updated less often than there are steps."""
    mixture = tunables.mixture(tmp_path, ONE)
    weights = mixture / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in read_tensors(weights).items()}
    table = tensors["model.router.log_likelihoods"]
    table[:] = 0.0
    table[150:, 1] = 50.0
    table[:, 2] = -50.0
    write_tensors(weights, tensors)
    rng = np.random.default_rng(3)
    texts = [rng.integers(2, 150, 96) for _ in range(15)] + [rng.integers(150, 290, 96)]
    shard = tmp_path / "text.safetensors"
    write_shard(shard, [(np.append(BOS_ID, text), 200) for text in texts], vocab_size=300)
    train = {"micro_batch": 1, "accumulation": 1, "num_steps": 40, "schedule_steps": 40}
    assignment = tunables.assignment(mixture, shard, trains="all", train=train)
    resume = tunables.stopped(assignment, at=30)
    state = read_tensors(resume / "optimizer.safetensors")
    updates = [
        int(state[f"updates.model.layers.0.mlp.experts.{expert}.up_proj.weight"])
        for expert in range(3)
    ]
    assert updates[0] > updates[1] > updates[2] == 0
    tunables.run(assignment.model_copy(update={"resume": str(resume)}))
    straight = assignment.model_copy(update={"folder": str(tmp_path / "straight")})
    tunables.run(straight)
    assert result(assignment) == result(straight)
    trained = read_tensors(tmp_path / "straight" / "trained" / "trained.safetensors")
    for name in [name for name in trained if ".experts.2." in name]:
        assert np.array_equal(trained[name], tensors[name])


def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(
    tmp_path: Path, mixture: Path, shard: Path, capsys
) -> None:
    shorter = tunables.assignment(mixture, shard, train={"num_steps": 3})
    tunables.run(shorter)
    end = json.loads(capsys.readouterr().out.splitlines()[-1])["end"]
    longer = tunables.assignment(mixture, shard, resume=end)
    tunables.run(longer)
    straight = longer.model_copy(update={"resume": None, "folder": str(tmp_path / "straight")})
    tunables.run(straight)
    assert result(longer) == result(straight)


def test_what_was_trained_says_on_what_and_for_how_long(mixture: Path, shard: Path) -> None:
    assignment = tunables.assignment(mixture, shard, losses={"balance": 0.5})
    state = tunables.run(assignment)
    trained = Path(assignment.folder) / "trained"
    tuning = Tuning.model_validate_json((trained / "trained.json").read_bytes())
    assert (tuning.train, tuning.trains) == (assignment.train, "router")
    assert tuning.losses == assignment.losses
    assert tuning.tokens == 6 * 4 * 32
    assert tuning.loss == state.loss
    assert tuning.train_seconds == state.train_seconds > 0
    assert sorted(file.name for file in trained.iterdir()) == [
        "trained.json",
        "trained.safetensors",
    ]
    assert all(".router." in name for name in read_tensors(trained / "trained.safetensors"))


def test_layers_that_are_computed_twice_give_the_same_bits(
    tmp_path: Path, mixture: Path, shard: Path
) -> None:
    results = []
    for twice in (False, True):
        assignment = tunables.assignment(
            mixture,
            shard,
            trains="all",
            folder=str(tmp_path / str(twice)),
            gradient_checkpointing=twice,
        )
        tunables.run(assignment)
        results.append(result(assignment))
    assert results[0] == results[1]


def test_smaller_micro_batches_give_nearly_the_same_losses(mixture: Path, shard: Path) -> None:
    assignment = tunables.assignment(mixture, shard, trains="all", train={"micro_batch": 4})
    found = [losses(assignment, micro_batch=size) for size in (4, 2, 1)]
    assert np.ptp(found, axis=0).max() < 1e-3


def test_the_loss_that_is_told_is_the_language_models_alone(mixture: Path, shard: Path) -> None:
    train = {"num_steps": 1}
    weights = ({}, {"penalty": 3.0, "balance": 2.0, "entropy": 1.0})
    plain, pulled = (
        tunables.assignment(mixture, shard, train=train, losses=each) for each in weights
    )
    assert losses(plain) == losses(pulled)
    steps = [mixtures.load(one) for one in (plain, pulled)]
    for training in steps:
        loop.Stepper(training).step(0)
    name = "model.layers.0.mlp.router.weight"
    first, second = (training.optimizer.weights[name] for training in steps)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("recipe", [tunables.PREFIX, ONE, {"router": {"kind": "gateless"}}])
def test_the_loss_of_owned_heads_is_that_of_all_logits_at_once(
    tmp_path: Path, shard: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixtures, "LOGIT_CHUNK", 7 * 3 * mixables.SHAPE.vocab_size)
    mixture = tunables.mixture(tmp_path, recipe, trains="ffn_embeddings")
    training = mixtures.load(tunables.assignment(mixture, shard, trains="all"))
    tokens = torch.from_numpy(training.batches.step(0)[0])
    weights = training.optimizer.weights
    told = training.loss()(tokens, 0)
    told.backward()
    ours = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    training.model.zero_grad(set_to_none=True)
    logits = training.model(input_ids=tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()
    assert told.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, gradient in ours.items():
        assert torch.allclose(gradient, weights[name].grad, atol=1e-6), name


def test_tied_embeddings_are_trained_as_one(tmp_path: Path, shard: Path) -> None:
    config = HdeeMoeConfig(
        vocab_size=mixables.SHAPE.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        expert_names=["one", "other"],
        expert_widths=[8, 12],
        router="linear",
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
    )
    torch.manual_seed(0)
    HdeeMoeForCausalLM(config).save_pretrained(tmp_path / "mixture")
    assignment = tunables.assignment(tmp_path / "mixture", shard, trains="router_embeddings")
    resume = tunables.stopped(assignment, at=3)
    tunables.run(assignment.model_copy(update={"resume": str(resume)}))
    straight = assignment.model_copy(update={"folder": str(tmp_path / "straight")})
    tunables.run(straight)
    assert result(assignment) == result(straight)
    file = tmp_path / "straight" / "trained" / "trained.safetensors"
    check_file(file, trained_tensors(config, "router_embeddings"))
    assert "model.embed_tokens.weight" in read_tensors(file)
