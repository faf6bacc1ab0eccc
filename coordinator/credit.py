"""Who did how much of an accepted assignment. Pure.

A lease may go on from a training checkpoint that an earlier attempt left, of the same worker or of
another one. The steps of the accepted expert are those of this chain, each attempt's from where it
went on to where the next one did. Where the chain begins with the end of a shorter training of the
same curve, the steps up to there are not counted: they were credited with that one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Attempted = tuple[str, int]
"""An attempt: the assignment and the fencing number."""


@dataclass(frozen=True)
class Try:
    """One attempt's worker, and the attempt and step whose checkpoint it went on from.

    `resumed` None: from the start, or from a checkpoint that is this worker's own work.
    """

    worker: str
    resumed: Attempted | None
    resumed_step: int


def steps_by_worker(
    tries: Mapping[Attempted, Try], *, last: Attempted, num_steps: int
) -> dict[str, int]:
    """Worker to the steps it did of an expert that the attempt `last` finished.

    The counts add up to `num_steps`, unless the chain leads to an attempt that is not in `tries`:
    one at another spec.
    """
    done: dict[str, int] = {}
    end, at, seen = num_steps, last, {last}
    while end > 0 and at in tries:
        one = tries[at]
        # A chain that returns to itself would be a broken ledger: its start keeps what is left.
        goes_on = one.resumed is not None and one.resumed not in seen
        start = min(one.resumed_step, end) if goes_on else 0
        if end > start:
            done[one.worker] = done.get(one.worker, 0) + end - start
        end = start
        if goes_on and one.resumed is not None:
            at = one.resumed
            seen.add(at)
    return done
