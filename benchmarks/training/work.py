"""What all sides train: the same weights, batches and recipe, told by one assignment file."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.seeds import seed_assignment
from protocol.specs import ModelShape
from shared.shards import BOS_ID, Batches, Shard, write_shard
from shared.training.assignment import TrainerAssignment

SCHEDULE_STEPS = 100_000
"""So long that rates hardly differ whether a schedule counts its updates from 0 or from 1."""

_DOCUMENT_TOKENS = 512
_ZIPF = 1.1
"""Exponent of the token frequencies: about that of words."""


def make_assignment(
    folder: Path, *, shape: ModelShape, batch: int, compiled: bool, num_threads: int
) -> TrainerAssignment:
    """A seed of `shape` on made-up text, `batch` whole contexts a step."""
    shard = folder / "train.safetensors"
    _write_text(shard, vocab_size=shape.vocab_size, num_tokens=64 * batch * shape.context_length)
    return seed_assignment(
        shard,
        shape,
        num_steps=SCHEDULE_STEPS,
        batch=batch,
        compiled=compiled,
        num_threads=num_threads,
    )


def windows(assignment: TrainerAssignment, num_steps: int) -> torch.Tensor:
    """What ours reads in its first steps, int64 [num_steps * batch, sequence_length + 1]."""
    spec = assignment.spec
    shard = Shard.read(Path(assignment.shard), vocab_size=spec.shape.vocab_size)
    batches = Batches(shard, spec.train)
    return torch.from_numpy(np.concatenate([batches.step(step)[0] for step in range(num_steps)]))


def _write_text(path: Path, *, vocab_size: int, num_tokens: int) -> None:
    rng = np.random.default_rng(1)
    shares = 1.0 / np.arange(1, vocab_size - BOS_ID) ** _ZIPF
    tokens = rng.choice(np.arange(BOS_ID + 1, vocab_size), num_tokens, p=shares / shares.sum())
    parts = np.split(tokens, range(_DOCUMENT_TOKENS, num_tokens, _DOCUMENT_TOKENS))
    documents = [(np.concatenate([[BOS_ID], part]), 4 * len(part)) for part in parts]
    write_shard(path, documents, vocab_size=vocab_size)
