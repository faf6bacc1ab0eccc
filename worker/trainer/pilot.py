"""Trial steps of a spec on random tokens: does it fit, and how fast is it?"""

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from protocol.capability import Device
from protocol.specs import ExpertSpec
from shared import model as models
from shared.shards import BOS_ID, Batches, Shard, write_shard
from worker.trainer import lora
from worker.trainer.checkpoint import TrainerState
from worker.trainer.loop import Stepper, Training
from worker.trainer.memory import peak_bytes
from worker.trainer.optim import Optimizer, drawn_width

STEPS = 2
"""The optimizer's moments come into being in the first: the second one takes all that any takes."""

MAX_ACCUMULATION = 2
"""Accumulating more micro-batches takes longer, and no more memory."""


@dataclass(frozen=True)
class Tried:
    """What trial steps showed. `micro_batch` is what fitted: the spec's, or fewer."""

    micro_batch: int
    peak_memory_bytes: int
    tokens_per_second: float


def random_training(spec: ExpertSpec, device: Device) -> Training:
    """A training of `spec` from fresh weights on text without sense, ready for its first step."""
    train = spec.train
    length = train.sequence_length * train.micro_batch * train.accumulation + 1
    tokens = np.arange(length) % (spec.shape.vocab_size - 2) + 2
    tokens[0] = BOS_ID
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        write_shard(path, [(tokens, length)], vocab_size=spec.shape.vocab_size)
        shard = Shard.read(path, vocab_size=spec.shape.vocab_size)
    model = models.build(spec.shape, rng_seed=0)
    if spec.lora is not None:
        lora.attach(model, spec)
    model.to(torch.device(device)).train()  # type: ignore[arg-type]  # wraps hide self
    state = TrainerState(spec=spec.digest, step=0, loss=None, train_seconds=0.0)
    return Training(spec, device, None, model, Optimizer(model, spec), Batches(shard, train), state)


def try_steps(spec: ExpertSpec, device: Device) -> Tried:
    """Makes STEPS updates at the widest FFN that the spec trains. Raises what torch raises."""
    accumulation = min(spec.train.accumulation, MAX_ACCUMULATION)
    train = spec.train.model_copy(update={"accumulation": accumulation})
    tried = spec.model_copy(update={"train": train})
    stepper = Stepper(random_training(tried, device))
    widest = (step for step in count() if drawn_width(tried, step) == spec.shape.ffn_width)
    seconds = 0.0
    for step in (next(widest) for _ in range(STEPS)):
        begun = time.monotonic()
        stepper.step(step)
        seconds = time.monotonic() - begun
    speed = train.tokens_per_step / max(seconds, 1e-9)
    return Tried(stepper.micro_batch, peak_bytes(device), speed)
