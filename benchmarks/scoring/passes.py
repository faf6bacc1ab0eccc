"""One forward pass of one model over one shard, in the batches that scoring uses."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from benchmarks.scoring.ground import Ground
from coordinator.scoring.measuring import BATCH_LABELS, Checkpoint
from protocol.blobs import ShardManifest
from shared import model as models
from shared.shards import Shard, scoring_windows

Batch = tuple[torch.Tensor, torch.Tensor]

ROWS = 512
"""Of logits at a time: faster than all of a batch, since fewer bytes go through the caches."""


def batches(ground: Ground, manifest: ShardManifest, context_length: int) -> list[Batch]:
    """Inputs and labels int64 [windows, context_length], in the order of the shard's labels.

    Every window of the ground is full, so nothing is padded.
    """
    store = ground.sealed if manifest.split == "test" else ground.public
    shard = Shard.read(store.path(manifest.blob.digest), vocab_size=manifest.vocab_size)
    windows = scoring_windows(shard, context_length)
    if (windows.lengths != context_length).any():
        raise ValueError(f"{manifest.domain}: expected documents of whole windows")
    index = windows.starts[:, None] + np.arange(context_length + 1)
    tokens = torch.from_numpy(shard.tokens[index].astype(np.int64))
    return [
        (part[:, :-1], part[:, 1:]) for part in tokens.split(max(1, BATCH_LABELS // context_length))
    ]


@torch.inference_mode()
def logits(model: LlamaForCausalLM, inputs: torch.Tensor) -> torch.Tensor:
    """float32 [windows, context_length, vocab]."""
    found: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
    return found


@torch.inference_mode()
def _score(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    rows = model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    for some, wanted in zip(rows.split(ROWS), labels.flatten().split(ROWS), strict=True):
        functional.cross_entropy(model.lm_head(some), wanted, reduction="none")


@dataclass(frozen=True)
class PassSeconds:
    """CPU seconds of one forward pass of each checkpoint over each shard; nothing else counts.

    `bare` are logits alone, `scored` the same and what any pass that scores text adds to them: the
    labels' log-likelihoods, by PyTorch's own cross-entropy, over ROWS labels at a time.
    """

    bare: float
    scored: float


def pass_seconds(ground: Ground, checkpoints: Iterable[Checkpoint]) -> PassSeconds:
    """Both kinds take turns, shard by shard. Models and batches are ready before the clock runs."""
    bare = scored = 0.0
    for checkpoint in checkpoints:
        model = models.load(checkpoint.path, checkpoint.shape)
        for manifest in ground.shards:
            some = batches(ground, manifest, checkpoint.shape.context_length)
            started = time.process_time()
            for inputs, _ in some:
                logits(model, inputs)
            between = time.process_time()
            for inputs, labels in some:
                _score(model, inputs, labels)
            bare += between - started
            scored += time.process_time() - between
    return PassSeconds(bare, scored)
