"""Part of a mixture is trained in this process: what changes, what does not, what is learned."""

import json
from pathlib import Path
from typing import Any

import mixables
import numpy as np
import pytest
import torch
import tunables

from protocol.specs import ModelShape
from shared.mixing.making import make_mixture
from shared.mixing.opening import open_mixture
from shared.mixing.recipe import make_recipe
from shared.mixing.scoring import mixture_log_likelihoods
from shared.mixing.tuning import apply_tuning, is_trained
from shared.shards import BOS_ID, Shard, write_shard
from shared.tensorfiles import read_tensors, write_tensors
from shared.training.assignment import MixtureAssignment, TrainerAssignment
from worker.trainer import loop

VOCAB = mixables.SHAPE.vocab_size


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


def tuned(assignment: MixtureAssignment) -> Path:
    """The mixture after the training."""
    tunables.run(assignment)
    into = Path(assignment.folder).with_name(f"{Path(assignment.folder).name}-tuned")
    apply_tuning(Path(assignment.mixture), Path(assignment.folder) / "trained", into)
    return into


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return read_tensors(folder / "model.safetensors")


@pytest.mark.parametrize("trains", ["router", "router_embeddings", "router_attention", "all"])
def test_what_is_not_trained_stays_bit_equal(tmp_path: Path, trains: str) -> None:
    mixture = tunables.mixture(tmp_path)
    new = tuned(tunables.assignment(mixture, tunables.shard(tmp_path), trains=trains))
    before, after = weights_of(mixture), weights_of(new)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if is_trained(trains, name)}
    assert any(".router." in name for name in changed)
    parts = [
        part for part in ("embed_", "lm_head", "attn", "norm", "experts") if part in str(changed)
    ]
    expected = {
        "router": [],
        "router_embeddings": ["embed_", "lm_head"],
        "router_attention": ["attn"],
        "all": ["embed_", "lm_head", "attn", "norm", "experts"],
    }
    assert parts == expected[trains]


@pytest.mark.parametrize("kind", ["global", "fine", "deep"])
def test_every_learned_router_is_trained(tmp_path: Path, kind: str) -> None:
    router = {"kind": kind, "source": "noisy"} | ({"hidden_size": 8} if kind == "deep" else {})
    mixture = tunables.mixture(tmp_path, {"router": router})
    new = tuned(tunables.assignment(mixture, tunables.shard(tmp_path)))
    before, after = weights_of(mixture), weights_of(new)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if ".router." in name}


def test_a_table_that_was_counted_is_not_trained(tmp_path: Path) -> None:
    mixture = tunables.mixture(tmp_path, tunables.PREFIX, trains="ffn_embeddings")
    shard = tunables.shard(tmp_path)
    new = tuned(tunables.assignment(mixture, shard, trains="router_embeddings"))
    before, after = weights_of(mixture), weights_of(new)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        f"{part}.experts.{expert}.weight"
        for part in ("model.embed_tokens", "lm_head")
        for expert in range(3)
    }


def trained_experts(folder: Path, texts: dict[str, list[np.ndarray]]) -> list[Any]:
    """Experts whose FFNs really learned their own domain, on the seed of `folder`."""
    mixables.seed(folder)
    found = []
    for name, documents in texts.items():
        path = folder / f"{name}.safetensors"
        write_shard(path, [(text, 2 * len(text)) for text in documents], vocab_size=VOCAB)
        shape: ModelShape = mixables.SHAPE.model_copy(update={"ffn_width": mixables.WIDTHS[name]})
        spec = {
            "kind": "expert",
            "domain": name,
            "shape": shape,
            "nested_widths": (),
            "train_shard": "0" * 64,
            "parent": "0" * 64,
            "trains": "ffn",
            "train": tunables.RECIPE.model_copy(
                update={"num_steps": 60, "schedule_steps": 60, "peak_learning_rate": 2e-2}
            ),
        }
        work = folder / f"work-{name}"
        assignment = TrainerAssignment.model_validate(
            {
                "spec": spec,
                "shard": str(path),
                "parent": str(folder / "seed.safetensors"),
                "parent_shape": mixables.SHAPE,
                "resume": None,
                "folder": str(work),
                "device": "cpu",
                "num_threads": 1,
                "checkpoint_seconds": 3600.0,
            }
        )
        loop.run(
            loop.load(assignment),
            folder=work,
            checkpoint_seconds=3600.0,
            stopping=lambda: False,
        )
        found.append(mixables.ingredient(work / "expert" / "model.safetensors", shape, name=name))
    return found


def test_a_router_learns_which_expert_knows_a_text(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    texts = {
        name: [np.append(BOS_ID, rng.integers(low, low + 20, 120)) for _ in range(12)]
        for name, low in (("python", 10), ("sea", 200))
    }
    experts = trained_experts(tmp_path, texts)
    make_mixture(
        experts,
        mixables.seed(tmp_path),
        make_recipe(tunables.LINEAR),
        statistics={},
        vocabulary=mixables.vocabulary(),
        into=tmp_path / "mixture",
    )
    blend = tmp_path / "blend.safetensors"
    both = [text for pair in zip(*texts.values(), strict=True) for text in pair]
    write_shard(blend, [(text, 2 * len(text)) for text in both], vocab_size=VOCAB)
    train = {"num_steps": 40, "schedule_steps": 40, "peak_learning_rate": 5e-2}
    capsys.readouterr()
    new = tuned(tunables.assignment(tmp_path / "mixture", blend, train=train))
    curve = [point["loss"] for point in said(capsys)[-1]["curve"]]
    assert curve[-1] < curve[0]
    before, after = open_mixture(tmp_path / "mixture"), open_mixture(new)
    text = Shard.read(blend, vocab_size=VOCAB)
    scores = {
        name: -mixture_log_likelihoods(model, text, length=32, batch=8).mean()
        for name, model in (("before", before), ("after", after))
    }
    best = np.mean(
        [
            -mixture_log_likelihoods(
                before,
                Shard.read(tmp_path / f"{name}.safetensors", vocab_size=VOCAB),
                length=32,
                batch=8,
                gates=before.forced(name, like=torch.zeros((), dtype=torch.int64)),
            ).mean()
            for name in texts
        ]
    )
    assert scores["after"] < scores["before"] - 0.5 * (scores["before"] - best)


def twins(folder: Path) -> Path:
    """A mixture of a narrow expert and a wide one that computes the same."""
    seed = mixables.seed(folder)
    narrow = mixables.expert(folder, "law")
    tensors = {
        name: tensor.copy()
        for name, tensor in read_tensors(folder / "law-ffn0.safetensors").items()
    }
    extra = mixables.WIDTHS["python"] - narrow.shape.ffn_width
    for name in [name for name in tensors if ".mlp." in name]:
        axis = 1 if "down_proj" in name else 0
        form = list(tensors[name].shape)
        form[axis] = extra
        more = np.zeros(form, np.float32) if axis else np.full(form, 0.1, np.float32)
        tensors[name] = np.concatenate([tensors[name], more], axis)
    write_tensors(folder / "wide.safetensors", tensors)
    wide = mixables.ingredient(folder / "wide.safetensors", mixables.SHAPE, name="python")
    make_mixture(
        [wide, narrow],
        seed,
        make_recipe({"router": {"kind": "linear", "source": "noisy", "selection": "top_p"}}),
        statistics={},
        vocabulary=mixables.vocabulary(),
        into=folder / "mixture",
    )
    return folder / "mixture"


def active_width(folder: Path, shard: Path) -> float:
    """The mean width that a position goes through, over layers and the shard's first tokens."""
    model = open_mixture(folder)
    tokens = Shard.read(shard, vocab_size=VOCAB).tokens[:320].astype(np.int64).reshape(-1, 32)
    with torch.inference_mode():
        decisions = model.model(input_ids=torch.from_numpy(tokens), use_cache=False).decisions
    widths = torch.tensor(model.config.expert_widths, dtype=torch.float32)
    return float(torch.stack([(gates > 0).float() @ widths for _, gates in decisions]).mean())


def test_the_penalty_sends_text_through_the_narrow_one_of_two_equal_experts(tmp_path: Path) -> None:
    mixture, shard = twins(tmp_path), tunables.shard(tmp_path)
    train = {"num_steps": 24, "schedule_steps": 24, "peak_learning_rate": 5e-2}
    widths = {}
    for penalty in (0.0, 0.1):
        assignment = tunables.assignment(
            mixture,
            shard,
            train=train,
            losses={"penalty": penalty},
            folder=str(tmp_path / f"penalty-{penalty}"),
        )
        widths[penalty] = active_width(tuned(assignment), shard)
    assert widths[0.1] < 0.7 * widths[0.0]
