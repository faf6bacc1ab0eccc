"""How long what is planned will take, at the pace of this process. Pure.

What earlier processes trained is done, but says nothing of the pace: neither what is there when the
clock starts, nor what comes to light when a training begins from an earlier one's checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.local.tally import Tally


def seconds_left(elapsed: float, *, done: float, before: float, total: float) -> float | None:
    """For the rest of `total` FLOPs, of which `done` are; None as long as there is no pace.

    `before` of them were when this process's clock started, `elapsed` seconds ago.
    """
    own = done - before
    return elapsed * max(0.0, total - done) / own if own > 0 and elapsed > 0 else None


@dataclass(frozen=True)
class Pace:
    """What was there of each curve when the clock started, and how far it has been since, in steps.

    `started_at` is when: once the first training makes steps, as loading has no pace. `moved_at` is
    when steps were last heard of: how many were made since then nobody knows.
    """

    started_at: float
    moved_at: float
    before: Mapping[str, int]
    furthest: Mapping[str, int]

    @classmethod
    def begin(cls, standing: Tally, moment: float) -> "Pace":
        """The clock starts."""
        steps = {name: curve.step for name, curve in standing.curves.items()}
        return cls(moment, moment, steps, steps)

    def after(self, standing: Tally, first_steps: Mapping[str, int], moment: float) -> "Pace":
        """Now that this stands so, and trainings have begun at these steps of their curves.

        Where a curve was never as far as a training of it begins, others trained it so far.
        """
        before, furthest, moved_at = dict(self.before), dict(self.furthest), self.moved_at
        for name, first in first_steps.items():
            found = max(0, first - furthest.get(name, 0))
            before[name] = before.get(name, 0) + found
            furthest[name] = furthest.get(name, 0) + found
        for name, curve in standing.curves.items():
            if curve.step > furthest.get(name, 0):
                furthest[name], moved_at = curve.step, moment
        return Pace(self.started_at, moved_at, before, furthest)

    def seconds_left(self, standing: Tally) -> float | None:
        """For all that is planned; None as long as there is no pace."""
        before = sum(
            min(self.before.get(name, 0), curve.step) * curve.step_flops
            for name, curve in standing.curves.items()
        )
        elapsed = self.moved_at - self.started_at
        return seconds_left(elapsed, done=standing.flops, before=before, total=standing.num_flops)
