"""What was measured: latencies by route, counted from when a request was due, and refusals.

A request that had to wait because earlier ones were slow is counted from the moment at which it
should have been sent: otherwise a server that stands still for a second hides all but one of the
requests that it delayed (coordinated omission).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

WHOLE = "(asked to acknowledged)"
"""Not a route: from when a worker wanted work until its lease was acknowledged."""


@dataclass(frozen=True)
class Quantiles:
    """Of latencies in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """The quantiles of `seconds` in milliseconds, by nearest rank: values that did occur.

    All of them are 0 where there is nothing to measure.
    """
    ordered = sorted(seconds)

    def at(share: float) -> float:
        if not ordered:
            return 0.0
        return 1000.0 * ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Quantiles(len(ordered), at(0.50), at(0.95), at(0.99), at(1.0))


@dataclass
class Measures:
    """Collects what happens in one phase. Times are the event loop's, in seconds.

    Only what was due, or happened, from `start` until `end` counts; errors always do.
    """

    start: float = -math.inf
    end: float = math.inf
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def answered(self, route: str, *, due: float, at: float) -> None:
        """A request that was due at `due` was answered as hoped for."""
        if self.start <= due < self.end:
            self.latencies[route].append(at - due)

    def happened(self, event: str, *, at: float) -> None:
        """Something worth counting."""
        if self.start <= at < self.end:
            self.events[event] += 1

    def failed(self, route: str, what: str) -> None:
        """A request was refused, or no answer came."""
        self.errors[f"{route}: {what}"] += 1

    def by_route(self) -> dict[str, Quantiles]:
        """Quantiles of each route, by name."""
        return {route: quantiles(found) for route, found in sorted(self.latencies.items())}

    @property
    def num_requests(self) -> int:
        """How many were answered or failed."""
        answered = (len(found) for route, found in self.latencies.items() if route != WHOLE)
        return sum(answered) + self.errors.total()
