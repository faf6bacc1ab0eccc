"""How much memory a spec really takes: the estimate, corrected by what workers measured. Pure.

The closed form of `shared.sizing` is off by the same share for all specs of one family: shapes that
differ in their FFN's width alone, trained in the same way on one kind of device. Of each worker its
newest measurement counts, and the middle one of all workers': a liar among three moves nothing, and
no number of them moves an estimate out of BOUNDS.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low

from protocol.capability import Device
from protocol.digests import digest_value
from protocol.specs import ExpertSpec
from shared.sizing import training_memory_bytes

BOUNDS = (0.8, 1.6)
"""Smallest and largest factor. Below, what does not fit would be offered; above, what fits not."""

STEPS = 20
"""Factors are rounded up to this part of one: each new one makes the scheduler look at everything
again."""

SLACK = 0.02
"""Peaks of equal trainings differ by so much: the next step would shut out machines for noise."""

Family = tuple[Device, str]


@dataclass(frozen=True)
class Peak:
    """What training a spec took at most on one worker's device, in bytes."""

    worker: str
    device: Device
    spec: ExpertSpec
    num_bytes: int


@lru_cache(maxsize=65_536)
def family_of(spec: ExpertSpec, device: Device) -> Family:
    """What a measurement of one spec says something about."""
    shape = spec.shape.model_dump(mode="json", exclude={"ffn_width"})
    return device, digest_value({"shape": shape, "lora": spec.lora is not None})


@lru_cache(maxsize=65_536)
def estimate(spec: ExpertSpec, device: Device) -> int:
    """Bytes by the closed form."""
    return training_memory_bytes(spec, device=device)


class Footprints:
    """What was measured so far, and what follows from it."""

    def __init__(self) -> None:
        self._ratios: dict[Family, dict[str, float]] = defaultdict(dict)

    def copy(self) -> "Footprints":
        """The same, which knows nothing of what comes later: for another thread."""
        other = Footprints()
        for family, ratios in self._ratios.items():
            other._ratios[family] = dict(ratios)
        return other

    def note(self, peak: Peak) -> bool:
        """Takes in a measurement, newer than all before; whether an estimate changes with it."""
        family = family_of(peak.spec, peak.device)
        before = self.factor(peak.spec, peak.device)
        ratio = peak.num_bytes / estimate(peak.spec, peak.device)
        self._ratios[family][peak.worker] = ratio
        return self.factor(peak.spec, peak.device) != before

    def factor(self, spec: ExpertSpec, device: Device) -> float:
        """What the estimate is multiplied with; 1.0 where nothing was measured."""
        ratios = self._ratios.get(family_of(spec, device))
        return bounded(median_low(ratios.values())) if ratios else 1.0

    def memory_bytes(self, spec: ExpertSpec, device: Device) -> int:
        """Bytes that training the spec is expected to take at most."""
        return math.ceil(estimate(spec, device) * self.factor(spec, device))


def bounded(ratio: float) -> float:
    """The factor for a ratio of measured to estimated bytes: rounded up, and within BOUNDS.

    What is at most SLACK above a step is rounded down to it.
    """
    least, most = BOUNDS
    return min(most, max(least, math.ceil((ratio - SLACK) * STEPS - 1e-9) / STEPS))
