"""The steps of one training, from its first or from a checkpoint's, to the expert or to a stop."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.capability import Device
from protocol.specs import ExpertSpec
from shared import model as models
from shared.shards import Batches, Shard
from shared.tensorfiles import check_file, check_finite, model_tensors
from worker.trainer import checkpoint as checkpoints
from worker.trainer import events
from worker.trainer.assignment import TrainerAssignment
from worker.trainer.checkpoint import Checkpoints, TrainerState
from worker.trainer.loss import cross_entropy
from worker.trainer.optim import Optimizer, drawn_width

_PROGRESS_SECONDS = 1.0
_LOSS_MEMORY = 0.95
"""Share of the smoothed loss that a step keeps."""


class Diverged(Exception):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Training:
    """One training, loaded and ready for the update after `state.step`."""

    spec: ExpertSpec
    device: Device
    resume: Path | None
    model: LlamaForCausalLM
    optimizer: Optimizer
    batches: Batches
    state: TrainerState


def prepare_torch(device: Device, num_threads: int) -> None:
    """Sets threads and deterministic kernels. Call it once, before anything is computed."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(num_threads)
    if device == "cuda":
        torch.use_deterministic_algorithms(mode=True)


def load(assignment: TrainerAssignment) -> Training:
    """Reads and checks everything that the assignment names.

    Raises OSError, BadInput, ShardError or TensorFileError.
    """
    spec = assignment.spec
    shard = Shard.read(Path(assignment.shard), vocab_size=spec.shape.vocab_size)
    batches = Batches(shard, spec.train)
    state = TrainerState(spec=spec.digest, step=0, loss=None, train_seconds=0.0)
    resume = None if assignment.resume is None else Path(assignment.resume)
    if resume is not None:
        state = checkpoints.read_state(resume, spec)
        model = models.load(resume / checkpoints.MODEL, spec.shape)
    elif assignment.parent is not None and assignment.parent_shape is not None:
        check_file(Path(assignment.parent), model_tensors(assignment.parent_shape))
        check_finite(Path(assignment.parent))
        model = models.load(Path(assignment.parent), spec.shape)
    else:
        model = models.build(spec.shape, rng_seed=spec.train.rng_seed)
    model.to(torch.device(assignment.device)).train()  # type: ignore[arg-type]  # wraps hide self
    optimizer = Optimizer(model, spec)
    if resume is not None:
        checkpoints.restore(resume, optimizer, step=state.step)
    return Training(spec, assignment.device, resume, model, optimizer, batches, state)


class Stepper:
    """Makes single updates of a training."""

    def __init__(self, training: Training) -> None:
        self._training = training
        body = training.model.model
        self._body = torch.compile(body) if training.spec.train.compile else body

    def step(self, step: int) -> float:
        """Makes the update after `step` and returns its mean loss.

        Raises Diverged, and then no weight has changed.
        """
        training = self._training
        spec, model = training.spec, training.model
        tokens = torch.from_numpy(training.batches.step(step)).to(training.device)
        total = torch.zeros((), device=training.device)
        with models.ffn_prefix(model, drawn_width(spec, step)):
            for micro_batch in tokens:
                with _autocast(training.device):
                    hidden = self._body(input_ids=micro_batch[:, :-1], use_cache=False)[0]
                    loss = cross_entropy(
                        hidden.flatten(0, 1), model.lm_head.weight, micro_batch[:, 1:].flatten()
                    )
                (loss / spec.train.accumulation).backward()
                total += loss.detach() / spec.train.accumulation
        norm = training.optimizer.step(step)
        value = float(total)
        if not (torch.isfinite(total) and norm < float("inf")):
            raise Diverged(f"step {step}: loss {value}, gradient norm {norm}")
        return value


def run(
    training: Training,
    *,
    folder: Path,
    checkpoint_seconds: float,
    stopping: Callable[[], bool],
) -> TrainerState:
    """Trains to `num_steps` and writes the expert, or stops between two steps and checkpoints.

    Returns the state it ended in. Raises Diverged, OSError and what torch raises.
    """
    store = Checkpoints(folder / "checkpoints")
    store.begin_at(training.state.step, training.resume)
    num_steps = training.spec.train.num_steps
    events.started(step=training.state.step, num_steps=num_steps)
    watch = _Watch(training)
    stepper = Stepper(training)
    state = training.state
    saved_at = reported_at = watch.elapsed()
    while state.step < num_steps and not stopping():
        state = watch.after(state, stepper.step(state.step))
        elapsed = watch.elapsed()
        if elapsed - reported_at >= _PROGRESS_SECONDS or state.step == training.state.step + 1:
            watch.report(state)
            reported_at = elapsed
        if elapsed - saved_at >= checkpoint_seconds and state.step < num_steps:
            _save(store, training, state)
            saved_at = watch.elapsed()
    if state.step < num_steps:
        _save(store, training, state)
        events.stopped(step=state.step)
        return state
    file = folder / "expert" / checkpoints.MODEL
    file.parent.mkdir(parents=True, exist_ok=True)
    models.save(training.model, file)
    events.finished(
        step=state.step,
        loss=state.loss,
        file=file,
        train_seconds=state.train_seconds,
        tokens_per_second=watch.tokens_per_second(state),
    )
    return state


class _Watch:
    """Keeps time from the moment the steps begin."""

    def __init__(self, training: Training) -> None:
        self._first = training.state
        self._train = training.spec.train
        self._started = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def after(self, state: TrainerState, loss: float) -> TrainerState:
        """The state one update on."""
        smoothed = loss
        if state.loss is not None:
            smoothed = _LOSS_MEMORY * state.loss + (1 - _LOSS_MEMORY) * loss
        return TrainerState(
            spec=state.spec,
            step=state.step + 1,
            loss=smoothed,
            train_seconds=self._first.train_seconds + self.elapsed(),
        )

    def tokens_per_second(self, state: TrainerState) -> float:
        tokens = (state.step - self._first.step) * self._train.tokens_per_step
        return tokens / max(state.train_seconds - self._first.train_seconds, 1e-9)

    def report(self, state: TrainerState) -> None:
        speed = self.tokens_per_second(state)
        left = (self._train.num_steps - state.step) * self._train.tokens_per_step
        events.progress(
            step=state.step,
            num_steps=self._train.num_steps,
            loss=state.loss if state.loss is not None else 0.0,
            tokens_per_second=speed,
            eta_seconds=left / speed,
        )


def _save(store: Checkpoints, training: Training, state: TrainerState) -> None:
    folder = store.write(training.model, training.optimizer, state)
    events.checkpoint(step=state.step, loss=state.loss, folder=folder)


def _autocast(device: Device) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic over fp32 weights where the device has it."""
    if device == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
