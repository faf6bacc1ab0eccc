"""The steps of one training, from its first or from a checkpoint's, to the result or to a stop."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.capability import Device
from protocol.specs import ExpertSpec, TrainSpec
from shared import model as models
from shared.shards import Batches, Shard
from shared.tensorfiles import check_file, check_finite, model_tensors
from shared.training.assignment import TrainerAssignment
from worker.trainer import checkpoint as checkpoints
from worker.trainer import events, lora
from worker.trainer.cadence import local_seconds
from worker.trainer.checkpoint import Checkpoints, TrainerState
from worker.trainer.failures import is_out_of_memory
from worker.trainer.loss import cross_entropy
from worker.trainer.memory import give_back, keep_freed, peak_bytes, smaller
from worker.trainer.optim import Optimizer, drawn_width
from worker.trainer.trainable import Loss, Trainable
from worker.trainer.watch import Watch

_PROGRESS_SECONDS = 1.0


class Diverged(Exception):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Training:
    """The training of an expert, loaded and ready for the update after `state.step`."""

    spec: ExpertSpec
    device: Device
    resume: Path | None
    model: LlamaForCausalLM
    optimizer: Optimizer
    batches: Batches
    state: TrainerState

    @property
    def train(self) -> TrainSpec:
        """The recipe."""
        return self.spec.train

    def loss(self) -> Loss:
        """Cross-entropy at the width that a step draws."""
        model, body = self.model, self.model.model
        if self.train.compile:
            # What was compiled for a former training of this process counts towards torch's limit,
            # beyond which it would silently not compile at all.
            torch.compiler.reset()
            body = torch.compile(body)

        def of(micro_batch: torch.Tensor, step: int) -> torch.Tensor:
            with models.ffn_prefix(model, drawn_width(self.spec, step)):
                hidden = body(input_ids=micro_batch[:, :-1], use_cache=False)[0]
            return cross_entropy(
                hidden.flatten(0, 1), model.lm_head.weight, micro_batch[:, 1:].flatten()
            )

        return of

    def write_checkpoint(self, folder: Path) -> None:
        """Writes the weights, or the adapter alone, and the optimizer's moments."""
        checkpoints.write_weights(self.model, folder)
        checkpoints.write_moments(self.optimizer.moments(), folder)

    def write_result(self, folder: Path, _state: TrainerState) -> Path:
        """Writes the expert; the file with its weights."""
        return checkpoints.write_expert(self.model, folder / "expert")


def prepare_torch(device: Device, num_threads: int) -> None:
    """Sets threads, deterministic kernels, and that steps use the same memory again and again.

    Call it once, before anything is computed.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(num_threads)
    if device == "cuda":
        torch.use_deterministic_algorithms(mode=True)
    keep_freed()


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
    model = _model(assignment, resume)
    model.to(torch.device(assignment.device)).train()  # type: ignore[arg-type]  # wraps hide self
    optimizer = Optimizer(model, spec)
    if resume is not None:
        checkpoints.restore(resume, optimizer, step=state.step)
    return Training(spec, assignment.device, resume, model, optimizer, batches, state)


def _model(assignment: TrainerAssignment, resume: Path | None) -> LlamaForCausalLM:
    """The weights to go on from: a checkpoint's, a parent's or fresh ones.

    With LoRA a checkpoint is an adapter alone, and the parent's weights are read every time.
    """
    spec = assignment.spec
    if resume is not None and spec.lora is None:
        return models.load(resume / checkpoints.MODEL, spec.shape)
    if assignment.parent is None or assignment.parent_shape is None:
        return models.build(spec.shape, rng_seed=spec.train.rng_seed)
    check_file(Path(assignment.parent), model_tensors(assignment.parent_shape))
    check_finite(Path(assignment.parent))
    model = models.load(Path(assignment.parent), spec.shape)
    lora.attach(model, spec)
    if resume is not None:
        lora.read_adapter(model, resume / checkpoints.ADAPTER)
    return model


class Stepper:
    """Makes single updates of a training.

    `micro_batch` sequences are computed at a time: the spec's, or fewer once those did not fit.
    """

    def __init__(self, training: Trainable) -> None:
        self.micro_batch = training.train.micro_batch
        self._training = training
        self._loss = training.loss()

    def step(self, step: int) -> float:
        """Makes the update after `step` and returns its mean loss.

        Where memory runs out on the way to the gradients, the step begins anew with a smaller
        micro-batch: the same sequences in the same order, the same mean, other roundings. Raises
        Diverged, and then no weight has changed, and what torch raises.
        """
        while (total := self._gradients(step)) is None:
            give_back(self._training.device)
        norm = self._training.optimizer.step(step)
        value = float(total)
        if not (torch.isfinite(total) and norm < float("inf")):
            raise Diverged(f"step {step}: loss {value}, gradient norm {norm}")
        return value

    def _gradients(self, step: int) -> torch.Tensor | None:
        """The step's mean loss, its gradients computed; None: a smaller micro-batch is to be tried.

        Returned, not raised: a traceback would keep what is to be freed.
        """
        try:
            return self._accumulate(step)
        except Exception as error:
            fewer = smaller(self.micro_batch)
            if fewer is None or not is_out_of_memory(error):
                raise
            self.micro_batch = fewer
            self._training.model.zero_grad(set_to_none=True)
            return None

    def _accumulate(self, step: int) -> torch.Tensor:
        training = self._training
        batch = training.batches.step(step)
        parts = batch.reshape(-1, self.micro_batch, batch.shape[-1])
        tokens = torch.from_numpy(parts).to(training.device)
        total = torch.zeros((), device=training.device)
        for micro_batch in tokens:
            with _autocast(training.device):
                loss = self._loss(micro_batch, step)
            (loss / len(parts)).backward()
            total += loss.detach() / len(parts)
        return total


def run(
    training: Trainable,
    *,
    folder: Path,
    checkpoint_seconds: float,
    stopping: Callable[[], bool],
) -> TrainerState:
    """Trains to `num_steps` and writes the result, or stops between two steps and checkpoints.

    Where the schedule goes on, the last step's checkpoint is written too: a longer training passes
    through it. A local checkpoint is written as often as `local_seconds` says, with
    `checkpoint_seconds` as its cap. Returns the state it ended in. Raises Diverged, OSError and
    what torch raises.
    """
    store = Checkpoints(folder / "checkpoints")
    store.begin_at(training.state.step, training.resume)
    num_steps = training.train.num_steps
    events.started(step=training.state.step, num_steps=num_steps)
    watch = Watch(training)
    stepper = Stepper(training)
    state = training.state
    saved_at = reported_at = watch.elapsed()
    write_seconds = 0.0
    while state.step < num_steps and not stopping():
        state = watch.after(*_step(stepper, state))
        elapsed = watch.elapsed()
        if elapsed - reported_at >= _PROGRESS_SECONDS or state.step == training.state.step + 1:
            watch.report(state)
            reported_at = elapsed
        due = saved_at + local_seconds(write_seconds, checkpoint_seconds)
        if watch.elapsed() >= due and state.step < num_steps:
            _save(store, training, state)
            saved_at = watch.elapsed()
            write_seconds = saved_at - elapsed
    if state.step < num_steps:
        _save(store, training, state)
        events.stopped(step=state.step)
        return state
    end = None
    if num_steps < training.train.schedule_steps:
        end = store.write(state, training.write_checkpoint)
    file = training.write_result(folder, state)
    speed = watch.tokens_per_second(state)
    events.finished(
        state,
        file=file,
        end=end,
        tokens_per_second=speed,
        peak_memory_bytes=peak_bytes(training.device),
    )
    return state


def _step(stepper: Stepper, state: TrainerState) -> tuple[TrainerState, float]:
    """Makes the update after `state`; the state with what memory forced, and the loss."""
    before = stepper.micro_batch
    loss = stepper.step(state.step)
    if stepper.micro_batch == before:
        return state, loss
    events.reduced(step=state.step, micro_batch=stepper.micro_batch)
    if state.inexact_from is not None:
        return state, loss
    return state.model_copy(update={"inexact_from": state.step}), loss


def _save(store: Checkpoints, training: Trainable, state: TrainerState) -> None:
    folder = store.write(state, training.write_checkpoint)
    events.checkpoint(state, folder=folder)


def _autocast(device: Device) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic over fp32 weights where the device has it: torch would emulate it."""
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
