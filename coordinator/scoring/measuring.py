"""Log-likelihoods of checkpoints on shards, with one model in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from coordinator.scoring.likelihood_cache import ROUNDING, CacheKey, Labels, LikelihoodCache
from coordinator.scoring.pulse import Task
from protocol.blobs import ShardManifest
from protocol.specs import ModelShape
from shared.blobs import BlobStore
from shared.likelihood import label_log_likelihoods, unigram_log_likelihoods
from shared.model import load
from shared.shards import Shard, Windows, scoring_windows

BATCH_LABELS = 2048
"""Labels that run together; on a CPU, larger batches are slower (they leave the cache)."""

FLOOR = -600.0
"""The worst log-likelihood of a label, in nats. A perplexity of exp(600) is still a float64."""


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, and the shape to use it at: a wider file is narrowed to `shape.ffn_width`.

    `digest` is the file's blob digest.
    """

    digest: str
    path: Path
    shape: ModelShape


class Measurer:
    """Reads shards from the public and the sealed store; keeps what it computes in the cache."""

    def __init__(self, *, public: BlobStore, sealed: BlobStore, cache: LikelihoodCache) -> None:
        self._public = public
        self._sealed = sealed
        self._cache = cache
        self._shards: dict[str, Shard] = {}

    def shard(self, manifest: ShardManifest) -> Shard:
        """The shard, memory-mapped. Raises BlobMissing (KeyError) when neither store has it."""
        digest = manifest.blob.digest
        if digest not in self._shards:
            store = self._sealed if manifest.split in ("gate", "test") else self._public
            self._shards[digest] = Shard.read(store.path(digest), vocab_size=manifest.vocab_size)
        return self._shards[digest]

    def windows(self, manifest: ShardManifest, context_length: int) -> Windows:
        """How the shard's labels lie in windows of at most `context_length`, and in documents."""
        return scoring_windows(self.shard(manifest), context_length)

    def is_measured(self, checkpoint: Checkpoint, manifests: Sequence[ShardManifest]) -> bool:
        """Whether the cache has it all, so that the checkpoint's file is not needed."""
        return all(
            self._cache.find(self._key(checkpoint, one), num_labels=num_labels(one)) is not None
            for one in manifests
        )

    def measure(
        self, checkpoint: Checkpoint, manifests: Sequence[ShardManifest], *, task: Task
    ) -> list[Labels]:
        """Log-likelihoods of each shard's labels, float32 [labels] each, in nats, from FLOOR to 0.

        The model is loaded once, if any shard is not in the cache, and let go before this returns.
        `task` advances by labels. Raises TensorFileError when the file does not fit the shape.
        """
        keys = [self._key(checkpoint, manifest) for manifest in manifests]
        missing = []
        for key, manifest in zip(keys, manifests, strict=True):
            if self._cache.find(key, num_labels=num_labels(manifest)) is None:
                missing.append((key, manifest))
            else:
                task.skip(num_labels(manifest))
        if missing:
            model = load(checkpoint.path, checkpoint.shape)
            for key, manifest in missing:
                self._compute(model, key, manifest, task)
        return [self._stored(key, manifest) for key, manifest in zip(keys, manifests, strict=True)]

    def unigram(self, train: ShardManifest, manifest: ShardManifest) -> NDArray[np.float32]:
        """The same labels under the token frequencies of the shard `train`, float32 [labels]."""
        return unigram_log_likelihoods(
            self.shard(train), self.shard(manifest), vocab_size=manifest.vocab_size
        )

    def _compute(
        self, model: LlamaForCausalLM, key: CacheKey, manifest: ShardManifest, task: Task
    ) -> None:
        labels, done_before = num_labels(manifest), 0

        def progress(done: int, total: int) -> None:
            nonlocal done_before
            task.advance(labels * (done - done_before) / total)
            done_before = done

        computed = label_log_likelihoods(
            model,
            self.shard(manifest),
            length=key.context_length,
            batch=max(1, BATCH_LABELS // key.context_length),
            progress=progress,
        )
        self._cache.put(key, floored(computed), num_labels=labels)

    def _key(self, checkpoint: Checkpoint, manifest: ShardManifest) -> CacheKey:
        return CacheKey(
            checkpoint=checkpoint.digest,
            ffn_width=checkpoint.shape.ffn_width,
            shard=manifest.blob.digest,
            context_length=checkpoint.shape.context_length,
        )

    def _stored(self, key: CacheKey, manifest: ShardManifest) -> Labels:
        found = self._cache.find(key, num_labels=num_labels(manifest))
        if found is None:
            raise OSError(f"{key.stem}: was stored and cannot be read back")
        return found


def floored(computed: Labels) -> Labels:
    """Log-likelihoods with FLOOR for those that are lower, NaN, infinite or impossible.

    Finite weights can overflow to any of these; what they are worth is nothing, on these labels.
    """
    sound = (computed >= FLOOR) & (computed <= ROUNDING)
    return np.where(sound, computed, np.float32(FLOOR))


def num_labels(manifest: ShardManifest) -> int:
    """Labels of a shard: every token but the BOS of each document."""
    return manifest.num_tokens - manifest.num_documents
