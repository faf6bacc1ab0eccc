"""Trains a mixture, or its router alone, as one model; beside it the seed, with the same steps.

Text is that of the run's trained domains in equal shares. Each training is a trainer child, whose
folder stays until it is done: a call that was stopped, or killed, goes on from its last checkpoint.
"""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.mixing.adapters import file_digest
from coordinator.mixing.run import FinishedRun
from protocol.capability import Device
from protocol.digests import digest_value
from protocol.specs import ExpertSpec, TrainSpec
from shared.blobs import piece_list_of
from shared.mixing.ingredients import MixingError
from shared.mixing.tuning import newest_checkpoint
from shared.mixing.writing import WEIGHTS
from shared.shards import Shard, join_shards
from shared.training.assignment import (
    MixtureAssignment,
    MixtureTrains,
    RouterLosses,
    TrainerAssignment,
)
from shared.training.runner import Event, TrainerProcess

SHARD = "text.safetensors"
CHECKPOINT_SECONDS = 30.0
CONTROL = "control"
CONFIG = "config.json"

Tell = Callable[[int, int], None]


class Halted(Exception):
    """A training was stopped; the next call goes on from its checkpoint."""


@dataclass(frozen=True)
class Machine:
    """Where trainers compute."""

    device: Device
    num_threads: int


def recipe_of(run: FinishedRun, *, num_steps: int, peak_learning_rate: float) -> TrainSpec:
    """The run's own recipe for experts, with a whole cosine over `num_steps`."""
    recipe = run.run.recipe
    return TrainSpec(
        num_steps=num_steps,
        schedule_steps=num_steps,
        warmup_steps=min(recipe.warmup_steps, num_steps),
        peak_learning_rate=peak_learning_rate,
        final_learning_rate=peak_learning_rate / 10,
        micro_batch=recipe.micro_batch,
        accumulation=recipe.accumulation,
        sequence_length=recipe.sequence_length,
        clip_norm=recipe.clip_norm,
        rng_seed=recipe.rng_seed,
        compile=False,
    )


def control_rate(run: FinishedRun) -> float:
    """The peak learning rate of the control, where nobody names one: one that suits the seed.

    That which the run's trials found for its dense baseline; without one, that of its experts.
    """
    if run.dense is not None:
        return run.dense.facts.train.peak_learning_rate
    return run.run.recipe.peak_learning_rate


def balanced_text(run: FinishedRun, train: TrainSpec, path: Path) -> Path:
    """A shard with the beginnings of all trained domains' train text, in equal shares of tokens.

    As much as the training reads, and at least a batch; scarce text repeats. Equal inputs give
    equal bytes.
    """
    shards = [run.shard(domain, "train")[1] for domain in run.trained]
    share = (train.num_steps + 1) * train.tokens_per_step // len(shards) + 1
    parts: list[tuple[Shard, int]] = []
    for shard in shards:
        times, left = divmod(share, shard.num_tokens)
        parts += [(shard, shard.num_documents)] * times
        parts.append((shard, int(np.searchsorted(shard.document_offsets[1:], left)) + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    join_shards(path, parts)
    return path


def mixture_assignment(
    mixture: Path,
    train: TrainSpec,
    machine: Machine,
    *,
    trains: MixtureTrains,
    losses: RouterLosses | None,
    work: Path,
) -> MixtureAssignment:
    """What the trainer is told of a mixture; `work` has its text."""
    folder = work / "mixture"
    return MixtureAssignment(
        mixture=str(mixture.absolute()),
        shard=str(work / SHARD),
        trains=trains,
        train=train,
        losses=losses,
        resume=_newest(folder),
        folder=str(folder),
        device=machine.device,
        num_threads=machine.num_threads,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )


def control_assignment(
    run: FinishedRun, train: TrainSpec, machine: Machine, *, work: Path
) -> TrainerAssignment:
    """The seed at width M, all of it, on the same text for the same steps.

    Another recipe has another folder: nothing goes on from a checkpoint of other numbers.
    """
    seed = run.seed
    folder = work / f"{CONTROL}-{digest_value(train.model_dump(mode='json'))[:8]}"
    spec = ExpertSpec(
        kind="dense",
        domain="mixed",
        shape=seed.checkpoint.shape,
        nested_widths=(),
        train_shard=piece_list_of(work / SHARD).ref().digest,
        parent=seed.facts.spec,
        trains="all",
        train=train,
    )
    return TrainerAssignment(
        spec=spec,
        shard=str(work / SHARD),
        parent=str(seed.checkpoint.path),
        parent_shape=seed.facts.shape,
        resume=_newest(folder),
        folder=str(folder),
        device=machine.device,
        num_threads=machine.num_threads,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )


def work_folder(
    run: FinishedRun,
    mixture: Path,
    train: TrainSpec,
    *,
    trains: MixtureTrains,
    losses: RouterLosses | None,
) -> Path:
    """Where a training of this mixture with this recipe has its files, in each call the same."""
    digest = digest_value(
        {
            "mixture": [file_digest(mixture / name) for name in (CONFIG, WEIGHTS)],
            "train": train.model_dump(mode="json"),
            "trains": trains,
            "losses": None if losses is None else losses.model_dump(mode="json"),
        }
    )
    return run.folders.state / "mixing" / digest[:16]


def run_training(
    assignment: MixtureAssignment | TrainerAssignment, *, log: Path, tell: Tell
) -> Event:
    """The trainer's last event, `finished`. Ctrl-C: it writes a checkpoint; raises Halted then.

    Raises MixingError with the trainer's reason when it failed.
    """
    return asyncio.run(_watched(assignment, log, tell))


async def _watched(
    assignment: MixtureAssignment | TrainerAssignment, log: Path, tell: Tell
) -> Event:
    last: Event = {"event": "failed", "message": "the trainer said nothing"}
    async with TrainerProcess(assignment, log=log) as trainer:
        loop, stops = asyncio.get_running_loop(), set()

        def stop() -> None:
            stops.add(asyncio.ensure_future(trainer.stop()))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        async for event in trainer.events():
            last = event
            if event["event"] in ("started", "progress"):
                tell(event["step"], event["num_steps"])
    if last["event"] == "finished":
        return last
    if last["event"] == "stopped" or stops:
        raise Halted
    raise MixingError(f"training failed: {last.get('message', last['event'])}; its log is {log}")


def _newest(folder: Path) -> str | None:
    """What a training in `folder` goes on from, if anything."""
    found = newest_checkpoint(folder)
    return None if found is None else str(found)
