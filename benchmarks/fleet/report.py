"""The figures of simulated runs, as text and as JSON."""

from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.fleet.bounds import Bounds, capacity
from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.state import Tally


@dataclass(frozen=True)
class Outcome:
    """One policy's run. Times in seconds, decision times in milliseconds, the others are shares.

    `ratio` is the makespan over the best lower bound; where the run was stopped, `at_least` is
    true and it is the end of what already ran then. `utilisation` is accepted training over the
    FLOPs of the machines that were there; `lost` is training after the last durable checkpoint of
    machines that left, `twice` that of attempts whose backup (or original) was accepted, both over
    accepted training.
    """

    policy: str
    ratio: float
    at_least: bool
    makespan: float
    accepted: int
    utilisation: float
    lost: float
    twice: float
    leases: int
    expired: int
    backups: int
    decisions: int
    decision_p50: float | None
    decision_p99: float | None
    decision_max: float | None
    terabytes_fetched: float


def judge(
    policy: str, tally: Tally, seconds: list[float], *, bounds: Bounds, fleet: list[Machine]
) -> Outcome:
    """The figures of one run."""
    finished = tally.makespan < float("inf")
    end = tally.makespan if finished else tally.latest_end
    times = np.array(seconds) * 1e3
    done = max(tally.trained, 1.0)
    return Outcome(
        policy=policy,
        ratio=end / bounds.best,
        at_least=not finished,
        makespan=end,
        accepted=tally.accepted,
        utilisation=tally.trained / capacity(fleet, end),
        lost=tally.lost / done,
        twice=tally.twice / done,
        leases=tally.leases,
        expired=tally.expired,
        backups=tally.backups,
        decisions=len(seconds),
        decision_p50=float(np.quantile(times, 0.5)) if seconds else None,
        decision_p99=float(np.quantile(times, 0.99)) if seconds else None,
        decision_max=float(times.max()) if seconds else None,
        terabytes_fetched=tally.fetched_bytes / 1e12,
    )


def as_values(outcomes: list[Outcome], bounds: Bounds) -> dict[str, object]:
    """Everything, for JSON."""
    return {
        "bounds": {**asdict(bounds), "best": bounds.best},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def as_text(outcomes: list[Outcome], bounds: Bounds) -> str:
    """A table for people."""
    linear = "-" if bounds.linear is None else f"{bounds.linear / 3600:.2f} h"
    lines = [
        f"lower bound {bounds.best / 3600:.2f} h (area {bounds.area / 3600:.2f} h, longest job "
        f"{bounds.longest / 3600:.2f} h, LP {linear})",
        "policy           makespan   over bound  utilised   lost  twice  leases  backups"
        "   p50 ms   p99 ms",
    ]
    for one in outcomes:
        over = f"{'> ' if one.at_least else ''}{one.ratio:.3f}"
        times = (
            "        -        -"
            if one.decision_p50 is None
            else f"{one.decision_p50:9.3f}{one.decision_p99:9.3f}"
        )
        lines.append(
            f"{one.policy:15}{one.makespan / 3600:8.2f} h{over:>13}{one.utilisation:9.1%}"
            f"{one.lost:8.2%}{one.twice:7.2%}{one.leases:8}{one.backups:9}{times}"
        )
    return "\n".join(lines)
