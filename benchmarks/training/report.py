"""The figures as text and as JSON."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.paired import Ratio, paired_ratio
from benchmarks.training.rounds import Course
from benchmarks.training.sides import TITLES

GOALS = {("trainer", False): 1.00, ("trainer", True): 1.05}
"""What the lower end of ours over a side is to be above, eager and compiled."""


@dataclass(frozen=True)
class Row:
    """Of one side: medians, and ours over it in tokens a CPU second (None: it is ours)."""

    name: str
    tokens_per_cpu_second: float
    start_cpu_seconds: float
    ratio: Ratio | None


@dataclass(frozen=True)
class Report:
    """Everything that one run found."""

    settings: Mapping[str, Any]
    machine: str
    load: float
    compiled: bool
    tokens_per_round: int
    rows: tuple[Row, ...]
    courses: Mapping[str, Course]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rows(courses: Mapping[str, Course], *, tokens_per_round: int) -> tuple[Row, ...]:
    """One a side; ours over a peer is the peer's CPU seconds over ours."""
    ours = courses["ours"].cpu_seconds
    return tuple(
        Row(
            name=name,
            tokens_per_cpu_second=tokens_per_round / statistics.median(course.cpu_seconds),
            start_cpu_seconds=statistics.median(course.start_seconds),
            ratio=None if name == "ours" else paired_ratio(course.cpu_seconds, ours),
        )
        for name, course in courses.items()
    )


def show(report: Report, console: Console) -> None:
    """A table, and each goal with what came of it."""
    table = Table(title=f"Training, {'compiled' if report.compiled else 'eager'}")
    table.add_column("")
    for words in ("tokens per CPU s", "CPU s to the first round", "ours over it (95 %; pairs)"):
        table.add_column(words, justify="right")
    for row in report.rows:
        table.add_row(
            TITLES[row.name],
            f"{row.tokens_per_cpu_second:.0f}",
            f"{row.start_cpu_seconds:.1f}",
            "" if row.ratio is None else str(row.ratio),
        )
    console.print(table)
    for row in report.rows:
        if row.ratio is not None:
            console.print(_verdict(row.name, row.ratio, compiled=report.compiled))
    console.print(f"{report.machine}; load average at the end {report.load:.1f}")


def _verdict(name: str, ratio: Ratio, *, compiled: bool) -> str:
    if (goal := GOALS.get((name, compiled))) is not None:
        words = "reached" if ratio.low > goal else "not reached"
        return f"goal: ours over {TITLES[name]} above {goal:.2f}, wholly: {words}"
    words = "missed" if ratio.high < 1 else "reached"
    return f"goal: ours not measurably behind {TITLES[name]}: {words}"
