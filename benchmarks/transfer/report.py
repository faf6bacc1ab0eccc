"""The figures as text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from benchmarks.transfer.figures import CPU_PARTS, Slowdown, Summary

MIB = 2**20


@dataclass(frozen=True)
class Report:
    """Everything that one run found."""

    settings: Mapping[str, Any]
    machine: str
    load: float
    transfers: Sequence[Summary]
    training: Slowdown | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def show(report: Report, console: Console) -> None:
    """All of it as tables."""
    console.print(Group(_rates(report.transfers), _pairs(report.transfers)))
    raw = report.transfers[0]
    if raw.written is not None:
        console.print(f"the raw stream without its sync in the end: {raw.written:.0f} MB/s")
    if (training := report.training) is not None:
        console.print(
            f"training beside an agent that serves {training.served_bytes_per_second / 1e6:.2f} "
            f"MB/s: {training.ratio:.3f} of its speed (95 %: {training.low:.3f} to "
            f"{training.high:.3f}); the agent and its daemon use {training.agent_cpu_share:.1%} "
            "of a core\nsteps a second, idle and serving: "
            + ", ".join(f"{idle:.1f} {serving:.1f}" for idle, serving in training.pairs)
        )
    console.print(f"{report.machine}; load average at the end {report.load:.1f}")


def _rates(transfers: Sequence[Summary]) -> Table:
    table = Table(title="Transfers: medians of interleaved rounds")
    table.add_column("")
    for words in ("MB/s", "best", "of (a)", "CPU s per 256 MiB", *CPU_PARTS):
        table.add_column(words, justify="right")
    table.add_column("memory, MiB:\nfetcher python", justify="right")
    table.add_column("fetcher p2pd", justify="right")
    for one in transfers:
        table.add_row(
            one.title,
            f"{one.median:.0f}",
            f"{one.best:.0f}",
            f"{one.ratio:.2f}",
            f"{sum(one.cpu_seconds.values()):.2f}",
            *(f"{one.cpu_seconds[part]:.2f}" for part in CPU_PARTS),
            _mib(one.python_bytes),
            _mib(one.p2pd_bytes),
        )
    return table


def _pairs(transfers: Sequence[Summary]) -> Table:
    table = Table(title="Of the raw stream in the same round")
    table.add_column("")
    for number in range(max(len(one.ratios) for one in transfers)):
        table.add_column(str(number + 1), justify="right")
    for one in transfers:
        table.add_row(one.title, *(f"{ratio:.2f}" for ratio in one.ratios))
    return table


def _mib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / MIB:.0f}"
