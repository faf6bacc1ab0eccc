"""Tiny mixtures, text for them, and assignments to train them."""

from pathlib import Path
from typing import Any

import mixables
import numpy as np

from protocol.manifests import TrainerState
from protocol.specs import TrainSpec
from shared.blobs import piece_list_of
from shared.mixing.facts import Tuning
from shared.mixing.making import make_mixture
from shared.mixing.opening import read_config
from shared.mixing.recipe import make_recipe
from shared.mixing.tuning import newest_checkpoint, trained_tensors
from shared.shards import BOS_ID, write_shard
from shared.tensorfiles import write_tensors
from shared.training.assignment import MixtureAssignment, MixtureTrains, RouterLosses
from worker.trainer import loop
from worker.trainer import mixture as mixtures

NAMES = ("python", "law", "sea")
LINEAR: dict[str, Any] = {"router": {"kind": "linear", "source": "noisy"}}
PREFIX: dict[str, Any] = {"router": {"kind": "prefix"}}

RECIPE = TrainSpec(
    num_steps=6,
    schedule_steps=6,
    warmup_steps=1,
    peak_learning_rate=1e-2,
    final_learning_rate=1e-3,
    micro_batch=2,
    accumulation=2,
    sequence_length=32,
    clip_norm=1.0,
    rng_seed=0,
    compile=False,
)


def mixture(folder: Path, recipe: dict[str, Any] = LINEAR, *, trains: str = "ffn") -> Path:
    """Three experts that trained these parts, mixed by this recipe."""
    experts = [mixables.expert(folder, name, trains=trains) for name in NAMES]
    make_mixture(
        experts,
        mixables.seed(folder),
        make_recipe(recipe),
        statistics={name: mixables.statistics(name) for name in NAMES},
        vocabulary=mixables.vocabulary(),
        into=folder / "mixture",
    )
    return folder / "mixture"


def shard(folder: Path, *, name: str = "text", rng_seed: int = 0, documents: int = 12) -> Path:
    """Documents of random tokens."""
    rng = np.random.default_rng(rng_seed)
    vocab_size = mixables.SHAPE.vocab_size
    texts = [rng.integers(2, vocab_size, 90) for _ in range(documents)]
    path = folder / f"{name}.safetensors"
    write_shard(path, [(np.append(BOS_ID, text), 180) for text in texts], vocab_size=vocab_size)
    return path


def assignment(mixture: Path, shard: Path, **changes: Any) -> MixtureAssignment:
    """To train the router for some steps; `train` changes the recipe."""
    values: dict[str, Any] = {
        "mixture": str(mixture),
        "shard": str(shard),
        "trains": "router",
        "resume": None,
        "folder": str(mixture.parent / "work"),
        "device": "cpu",
        "num_threads": 1,
        "checkpoint_seconds": 3600.0,
        **changes,
    }
    values["train"] = RECIPE.model_copy(update=changes.get("train", {}))
    return MixtureAssignment.model_validate(values)


def trained(mixture: Path, *, trains: MixtureTrains = "router", name: str = "trained") -> Path:
    """What a trainer leaves: other numbers for all tensors that it trained."""
    folder = mixture.parent / name
    folder.mkdir()
    rng = np.random.default_rng(0)
    forms = trained_tensors(read_config(mixture), trains)
    write_tensors(
        folder / "trained.safetensors",
        {one: rng.normal(size=form).astype(np.float32) for one, (_, form) in forms.items()},
    )
    said = Tuning(
        mixture=piece_list_of(mixture / "model.safetensors").ref().digest,
        shard="1" * 64,
        trains=trains,
        losses=RouterLosses(penalty=0.1),
        train=RECIPE,
        tokens=768,
        train_seconds=1.5,
        loss=5.0,
    )
    (folder / "trained.json").write_text(said.model_dump_json())
    return folder


def run(assignment: MixtureAssignment, *, stop_at: int | None = None) -> TrainerState:
    """Trains in this process, to the end or up to a step."""
    training = mixtures.load(assignment)
    steps = iter(range(training.state.step, 10**9))
    return loop.run(
        training,
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=lambda: stop_at is not None and next(steps) >= stop_at,
    )


def stopped(assignment: MixtureAssignment, *, at: int) -> Path:
    """The checkpoint of a training that was stopped."""
    run(assignment, stop_at=at)
    found = newest_checkpoint(Path(assignment.folder))
    assert found is not None
    assert found.name == f"step-{at:08d}"
    return found
