"""Ours beside its forward passes and beside recomputing; an eighth checkpoint; models in memory."""

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.models.llama.modeling_llama import LlamaForCausalLM
from typing_extensions import override

from benchmarks.paired import turns
from benchmarks.scoring import ours, recomputed
from benchmarks.scoring.ground import SEED, Ground
from benchmarks.scoring.passes import PassSeconds, pass_seconds
from coordinator.scoring.likelihood_cache import LikelihoodCache
from coordinator.scoring.measuring import Measurer
from coordinator.scoring.pulse import Task

TOLERANCE = 1e-6
"""Most that perplexities may differ by, relative to one another."""

_RNG_SEED = 1


class BenchmarkError(Exception):
    """Ours and the direct computation do not agree."""


@dataclass(frozen=True)
class Eighth:
    """What one more checkpoint cost: passes computed, CPU seconds; and those of the seven before.

    `combining_seconds` is what all ensembles cost once every likelihood is in the cache.
    """

    passes: int
    seconds: float
    passes_of_seven: int
    seconds_of_seven: float
    combining_seconds: float
    most_models: int


@dataclass(frozen=True)
class Found:
    """CPU seconds of each round, and how far the two ways of computing are from each other."""

    ours: tuple[float, ...]
    passes: tuple[PassSeconds, ...]
    recomputed: tuple[float, ...]
    ours_beside_recomputed: tuple[float, ...]
    difference: float
    eighth: Eighth


def measure(
    ground: Ground, *, rounds: int, recomputed_rounds: int, say: Callable[[str], None]
) -> Found:
    """Everything. Raises BenchmarkError when perplexities differ by more than TOLERANCE."""
    difference = check_agreement(ours_once(ground)[1], recomputed.score(ground))
    say(f"both ways agree to {difference:.1e}")
    eighth = _eighth(ground)
    pass_seconds(ground, ground.experts.values())
    our_seconds, passes = [], []
    for order in turns(["ours", "passes"], rounds, rng_seed=_RNG_SEED):
        for who in order:
            if who == "ours":
                our_seconds.append(ours_once(ground)[0])
            else:
                passes.append(pass_seconds(ground, ground.experts.values()))
    say(f"{rounds} rounds beside bare passes are over")
    beside, others = [], []
    for order in turns(["ours", "recomputed"], recomputed_rounds, rng_seed=_RNG_SEED):
        for who in order:
            if who == "ours":
                beside.append(ours_once(ground)[0])
            else:
                started = time.process_time()
                recomputed.score(ground)
                others.append(time.process_time() - started)
    say(f"{recomputed_rounds} rounds beside recomputing are over")
    return Found(
        ours=tuple(our_seconds),
        passes=tuple(passes),
        recomputed=tuple(others),
        ours_beside_recomputed=tuple(beside),
        difference=difference,
        eighth=eighth,
    )


def ours_once(ground: Ground) -> tuple[float, ours.Perplexities]:
    """CPU seconds of the whole scoring with an empty cache, and what it found."""
    with tempfile.TemporaryDirectory(prefix="hdee-scoring-") as folder:
        started = time.process_time()
        found = ours.score(ground, Path(folder))
        return time.process_time() - started, found


def check_agreement(one: ours.Perplexities, other: ours.Perplexities) -> float:
    """The largest relative difference. Raises BenchmarkError above TOLERANCE."""
    if one.keys() != other.keys():
        raise BenchmarkError("ours and the direct computation have other ensembles or domains")
    worst = max(one, key=lambda key: abs(one[key] / other[key] - 1))
    difference = abs(one[worst] / other[worst] - 1)
    if not difference <= TOLERANCE:
        raise BenchmarkError(
            f"{', '.join(worst)}: perplexity {one[worst]!r}, computed directly {other[worst]!r}"
        )
    return difference


class _Counting(Task):
    """Counts the models in memory whenever some labels are done."""

    most = 0

    @override
    def advance(self, amount: float) -> None:
        super().advance(amount)
        alive = sum(type(one) is LlamaForCausalLM for one in gc.get_objects())
        self.most = max(self.most, alive)


def _eighth(ground: Ground) -> Eighth:
    """The seven experts into an empty cache, then all eight."""
    with tempfile.TemporaryDirectory(prefix="hdee-scoring-") as name:
        folder = Path(name)
        measurer = Measurer(
            public=ground.public, sealed=ground.sealed, cache=LikelihoodCache(folder)
        )
        started = time.process_time()
        measured = ours.measure(ground, measurer, ground.experts, task=ours.quiet_task())
        between, passes = time.process_time(), _entries(folder)
        ours.combine(ground, measurer, measured)
        combined = time.process_time()
        everything = {**ground.experts, SEED: ground.seed}
        ours.measure(ground, measurer, everything, task=ours.quiet_task())
        ended, all_passes = time.process_time(), _entries(folder)
    return Eighth(
        passes=all_passes - passes,
        seconds=ended - combined,
        passes_of_seven=passes,
        seconds_of_seven=between - started,
        combining_seconds=combined - between,
        most_models=_most_models(ground),
    )


def _most_models(ground: Ground) -> int:
    """While each checkpoint is measured on one shard."""
    ground = replace(ground, dev=ground.dev[:1], test=())
    with tempfile.TemporaryDirectory(prefix="hdee-scoring-") as folder:
        measurer = Measurer(
            public=ground.public, sealed=ground.sealed, cache=LikelihoodCache(Path(folder))
        )
        task = ours.counting_task(_Counting)
        ours.measure(ground, measurer, ground.experts, task=task)
        return task.most


def _entries(folder: Path) -> int:
    """Passes whose log-likelihoods a cache holds."""
    return len(list(folder.glob("*.npy")))
