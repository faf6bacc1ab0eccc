"""The whole scoring as the scorer does it: each checkpoint once, then all ensembles at once."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.scoring.ground import ENSEMBLES, Ground
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.measuring import Checkpoint, Measurer
from coordinator.scoring.pulse import Pulse, Task
from protocol.blobs import ShardManifest
from shared.clock import now
from shared.ensemble import cached_prior, perplexity, posterior_ensemble, probability_average

MODES = ("average", "posterior", "cached prior")

Labels = Mapping[str, Mapping[str, np.ndarray]]
"""By checkpoint's name, then by shard's digest: float32 [labels]."""

Kind = TypeVar("Kind", bound=Task)

Perplexities = dict[tuple[str, str, str], float]
"""By ensemble, mode and domain."""


def score(ground: Ground, cache: Path) -> Perplexities:
    """Every mode of every ensemble on every domain's test text, by way of the cache's folder."""
    measurer = Measurer(public=ground.public, sealed=ground.sealed, cache=LikelihoodCache(cache))
    measured = measure(ground, measurer, ground.experts, task=quiet_task())
    return combine(ground, measurer, measured)


def measure(
    ground: Ground, measurer: Measurer, checkpoints: Mapping[str, Checkpoint], *, task: Task
) -> Labels:
    """Each checkpoint on all dev and test text."""
    digests = [manifest.blob.digest for manifest in ground.shards]
    return {
        name: dict(
            zip(digests, measurer.measure(checkpoint, ground.shards, task=task), strict=True)
        )
        for name, checkpoint in checkpoints.items()
    }


def combine(ground: Ground, measurer: Measurer, measured: Labels) -> Perplexities:
    """From log-likelihoods alone."""
    found: Perplexities = {}
    for ensemble, experts in ENSEMBLES.items():
        context = ground.experts[experts[0]].shape.context_length
        for dev, test in zip(ground.dev, ground.test, strict=True):
            prior = cached_prior(
                _rows(measured, experts, dev), measurer.windows(dev, context).label_starts
            )
            rows, starts = _rows(measured, experts, test), measurer.windows(test, context)
            for mode, labels in _modes(rows, starts.label_starts, prior):
                found[ensemble, mode, test.domain] = perplexity(labels)
    return found


def quiet_task() -> Task:
    """Progress that nobody is told of."""
    return counting_task(Task)


def counting_task(kind: type[Kind]) -> Kind:
    """The same, of a kind that keeps count of something."""
    log = logging.getLogger("benchmarks.scoring")
    pulse = Pulse(beat=lambda _: None, stop=threading.Event(), now=now, log=log)
    return kind(pulse, "scoring", 1, now=now, log=log)


def _rows(measured: Labels, experts: Sequence[str], shard: ShardManifest) -> np.ndarray:
    return np.stack([measured[name][shard.blob.digest] for name in experts]).astype(np.float64)


def _modes(
    rows: np.ndarray, starts: np.ndarray, prior: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    yield MODES[0], probability_average(rows)
    yield MODES[1], posterior_ensemble(rows, starts)
    yield MODES[2], posterior_ensemble(rows, starts, prior)
