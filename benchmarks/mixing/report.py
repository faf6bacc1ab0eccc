"""The figures as text and as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.mixing.dispatch import GOAL, Dispatch
from benchmarks.mixing.goals import Reached
from benchmarks.mixing.quality import Levers, Means, Quality
from benchmarks.mixing.speed import Generation
from coordinator.mixing.outcome import GROUPS, Group


@dataclass(frozen=True)
class Report:
    """What one run found, on which machine, by which settings."""

    settings: Mapping[str, str]
    machine: str
    load: float
    found: Any

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def show_speed(report: Report, console: Console) -> None:
    """A row for each number of experts."""
    found: Sequence[Generation] = report.found
    table = _table("Greedy generation, CPU seconds an answer", "experts", "mixture", "ensemble")
    _numbers(table, "tokens/s, mixture over ensemble (95 %; pairs)", "goal")
    for one in found:
        medians = [f"{statistics.median(some):.3f}" for some in (one.mixture, one.ensemble)]
        goal = "" if one.goal is None else f"{one.goal:g}: {_verdict(one.ratio.mean >= one.goal)}"
        table.add_row(str(one.experts), *medians, str(one.ratio), goal)
    console.print(table)
    _show_machine(report, console)


def show_dispatch(report: Report, console: Console) -> None:
    """A row for each layer and pass."""
    found: Sequence[Dispatch] = report.found
    table = _table("Experts of unequal width beside equal ones", "layer", "pass", "widths")
    _numbers(table, "unequal over equal (95 %; pairs)", f"goal: at most {GOAL}")
    for one in found:
        kind = "forward and backward" if one.training else "forward"
        widths = ", ".join(map(str, dict.fromkeys(one.layer.widths)))
        table.add_row(
            one.layer.title, kind, widths, str(one.ratio), _verdict(one.ratio.mean <= GOAL)
        )
    console.print(table)
    _show_machine(report, console)


def show_quality(report: Report, console: Console) -> None:
    """Levers of each regime on dev text; then, on test text, perplexities and goals."""
    found: Quality = report.found
    for levers in found.levers:
        _show_levers(levers, console)
    if found.perplexity:
        _show_perplexities(found, console)
        _show_goals(found.goals, console)
    _show_machine(report, console)


def _show_levers(levers: Levers, console: Console) -> None:
    table = _table(f"Dev text, experts trained: {levers.regime}; geometric means", "")
    _numbers(table, *GROUPS, "own, over the ensemble")
    ensemble = levers.columns["ensemble"]
    for name, means in {**levers.columns, **levers.variants}.items():
        by = [rating for rating, chosen in levers.chosen.items() if chosen == name]
        title = name + (f" (chosen by {' and '.join(by)})" if by else "")
        above = np.mean([np.log(a["own"] / b["own"]) for a, b in zip(means, ensemble, strict=True)])
        cells = [f"{_geometric(means, group):.2f}" for group in GROUPS]
        table.add_row(title, *cells, f"{100 * np.expm1(above):+.1f} %")
    console.print(table)
    for name, words in levers.refused.items():
        console.print(f"{name}: {words}")


def _show_perplexities(found: Quality, console: Console) -> None:
    table = _table("Test text, geometric means over replicates", "")
    _numbers(table, *GROUPS, "own, each replicate")
    for column in found.perplexity[0]["own"]:
        each = [one["own"][column] for one in found.perplexity]
        cells = [
            f"{np.exp(np.mean([np.log(one[group][column]) for one in found.perplexity])):.2f}"
            for group in GROUPS
        ]
        table.add_row(column, *cells, ", ".join(f"{value:.2f}" for value in each))
    console.print(table)


def _show_goals(goals: Sequence[Reached], console: Console) -> None:
    table = _table("Perplexity above what it stands beside", "mixture", "goal, at most")
    _numbers(table, "mean", "documents", "replicates", "each", "verdict")
    for one in goals:
        table.add_row(
            one.goal.column,
            f"{one.goal.title}: {one.goal.limit:+g} %",
            f"{one.mean:+.1f} %",
            _interval(one.documents),
            _interval(one.replicates),
            ", ".join(f"{value:+.1f}" for value in one.each),
            one.verdict,
        )
    console.print(table)


def _show_machine(report: Report, console: Console) -> None:
    console.print(f"{report.machine}; load average {report.load:.1f}")


def _geometric(means: Sequence[Means], group: Group) -> float:
    return float(np.exp(np.mean([np.log(one[group]) for one in means])))


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:+.1f} to {bounds[1]:+.1f}"


def _verdict(is_reached: bool) -> str:  # a cell's contents
    return "reached" if is_reached else "missed"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def _numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right")
