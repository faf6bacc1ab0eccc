"""The figures of one benchmark, as JSON and as text."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load.costs import Cost
from benchmarks.load.measures import Measures, Quantiles, quantiles
from benchmarks.load.server import Usage

HEARTBEAT_P99_MILLISECONDS = 100.0
KEPT_UP = 0.9
"""Share of the leases asked for: arrivals are random, so that a few more or less are chance."""


@dataclass(frozen=True, kw_only=True)
class PhaseReport:
    """One phase: what was asked for, what came of it, what both sides used of their core."""

    name: str
    seconds: float
    rates: Mapping[str, float]
    routes: Mapping[str, Quantiles]
    events: Mapping[str, int]
    errors: Mapping[str, int]
    acknowledged_a_second: float
    server_cpu_share: float
    server_cpu_milliseconds_a_request: float
    server_rss_bytes: int
    player_cpu_share: float
    player_late_p99_milliseconds: float

    @property
    def kept_up(self) -> bool:
        """No error, heartbeats answered in time, and as many leases as were asked for."""
        beats = self.routes.get("heartbeat")
        in_time = beats is None or beats.p99 <= HEARTBEAT_P99_MILLISECONDS
        enough = self.acknowledged_a_second >= KEPT_UP * self.rates.get("leases", 0.0)
        return not self.errors and in_time and enough


@dataclass
class Report:
    """Everything, in the order in which it was measured."""

    settings: Mapping[str, Any]
    machine: str
    phases: list[PhaseReport] = field(default_factory=list)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    cost_errors: Mapping[str, int] = field(default_factory=dict)
    limit: float | None = None
    alive: int = 0
    joined: int = 0
    expired: int = 0
    ledger_bytes: int = 0
    entries: int = 0

    @property
    def errors(self) -> int:
        """Requests that failed, workers shown dead, leases lost; looking for the limit is free."""
        phases = [phase for phase in self.phases if phase.name != "limit"]
        failed = sum(sum(found.errors.values()) for found in phases)
        failed += sum(self.cost_errors.values())
        lost = 0 if self.limit is not None else self.expired
        return failed + lost + (self.joined - self.alive)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "failed": self.errors}


def phase_report(
    name: str,
    measures: Measures,
    *,
    seconds: float,
    rates: Mapping[str, float],
    usages: Sequence[Usage],
    lateness: list[float],
) -> PhaseReport:
    """From what was collected. `usages`: server and player before, server and player after."""
    server_before, player_before, server_after, player_after = usages
    server_seconds = server_after.cpu_seconds - server_before.cpu_seconds
    return PhaseReport(
        name=name,
        seconds=seconds,
        rates=rates,
        routes=measures.by_route(),
        events=dict(measures.events),
        errors=dict(measures.errors.most_common(20)),
        acknowledged_a_second=measures.events["acknowledged"] / seconds,
        server_cpu_share=server_seconds / seconds,
        server_cpu_milliseconds_a_request=1000 * server_seconds / max(1, measures.num_requests),
        server_rss_bytes=server_after.rss_bytes,
        player_cpu_share=(player_after.cpu_seconds - player_before.cpu_seconds) / seconds,
        player_late_p99_milliseconds=quantiles(lateness).p99,
    )


def render_phase(phase: PhaseReport) -> str:
    """One phase as text."""
    asked = ", ".join(f"{rate:g} {what}/s" for what, rate in phase.rates.items())
    lines = [
        f"{phase.name}: {phase.seconds:.1f} s, asked for {asked}",
        f"  {'route':<26}{'answers':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}",
        *(
            f"  {route:<26}{q.count:>9}{q.p50:>9.1f}{q.p95:>9.1f}{q.p99:>9.1f}{q.max:>9.1f}"
            for route, q in phase.routes.items()
        ),
        f"  acknowledged leases {phase.acknowledged_a_second:.1f}/s; "
        + ", ".join(f"{what} {number}" for what, number in sorted(phase.events.items())),
        f"  server: {phase.server_cpu_share:.0%} of its core, "
        f"{phase.server_cpu_milliseconds_a_request:.2f} ms CPU a request, "
        f"{phase.server_rss_bytes / 2**20:.0f} MiB; player: {phase.player_cpu_share:.0%} of its "
        f"core, late by p99 {phase.player_late_p99_milliseconds:.1f} ms",
    ]
    lines += [f"  ERROR {number} x {what}" for what, number in phase.errors.items()]
    return "\n".join(lines)


def render_end(report: Report) -> str:
    """What is not of one phase, as text."""
    lines = []
    if report.costs:
        lines += [f"  {'route alone, 8 open':<26}{'requests':>9}{'CPU ms':>9}{'a second':>10}"]
        lines += [
            f"  {route:<26}{cost.count:>9}{cost.cpu_milliseconds:>9.2f}{cost.a_second:>10.0f}"
            for route, cost in report.costs.items()
        ]
    lines += [f"  ERROR {number} x {what}" for what, number in report.cost_errors.items()]
    lines.append(
        f"workers {report.joined}, shown alive {report.alive}; leases that ran out "
        f"{report.expired}; ledger {report.ledger_bytes / 1e6:.1f} MB, {report.entries} entries"
    )
    if report.limit is not None:
        lines.append(f"limit: {report.limit:.0f} acknowledged leases a second with heartbeats")
    lines.append(f"errors: {report.errors}")
    return "\n".join(lines)


def machine() -> str:
    """The processor's name and the number of its cores that this process sees."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = found[0].split(":", 1)[1].strip() if found else name
        return f"{name}, {len(found)} cores"
    return name
