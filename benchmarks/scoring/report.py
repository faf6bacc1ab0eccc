"""The figures as text and as JSON."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.paired import Ratio, paired_ratio
from benchmarks.scoring.rounds import TOLERANCE, Found

GOAL = 1.15
"""Most that the whole scoring may cost, in CPU seconds of its forward passes."""


@dataclass(frozen=True)
class Report:
    """Everything that one run found. Ratios are of CPU seconds."""

    settings: Mapping[str, Any]
    machine: str
    load: float
    over_bare: Ratio
    over_scored: Ratio
    recomputed_over_ours: Ratio | None
    found: Found

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def report(found: Found, *, settings: Mapping[str, Any], machine: str, load: float) -> Report:
    """The ratios of the rounds."""
    recomputed = None
    if found.recomputed:
        recomputed = paired_ratio(found.recomputed, found.ours_beside_recomputed)
    return Report(
        settings=settings,
        machine=machine,
        load=load,
        over_bare=paired_ratio(found.ours, [one.bare for one in found.passes]),
        over_scored=paired_ratio(found.ours, [one.scored for one in found.passes]),
        recomputed_over_ours=recomputed,
        found=found,
    )


def show(report: Report, console: Console) -> None:
    """A table, what else was found, and the goal."""
    found = report.found
    table = Table(title="Three ensembles, three modes, all domains, from seven checkpoints")
    table.add_column("")
    table.add_column("CPU s (median)", justify="right")
    table.add_column("ratio (95 %; pairs)", justify="right")
    for title, seconds, ratio in (
        ("ours, from an empty cache", found.ours, None),
        ("its forward passes alone", [one.bare for one in found.passes], report.over_bare),
        ("with the labels' likelihoods", [one.scored for one in found.passes], report.over_scored),
        (
            "every mode of every ensemble anew",
            found.recomputed,
            report.recomputed_over_ours,
        ),
    ):
        if seconds:
            table.add_row(title, f"{statistics.median(seconds):.2f}", str(ratio or ""))
    console.print(table)
    eighth = found.eighth
    console.print(
        "Ratios: ours over its passes; computing anew over ours.\n"
        f"perplexities agree with those over the whole vocabulary to {found.difference:.1e} "
        f"(goal: {TOLERANCE:.0e})\n"
        f"models in memory at most: {eighth.most_models}\n"
        f"seven checkpoints: {eighth.passes_of_seven} passes, {eighth.seconds_of_seven:.2f} CPU s; "
        f"an eighth: {eighth.passes} more, {eighth.seconds:.2f} CPU s; "
        f"all ensembles from the cache: {eighth.combining_seconds:.2f} CPU s\n"
        f"goal: ours at most {GOAL} of its forward passes: "
        f"{_verdict(report.over_bare)}; of passes with likelihoods: {_verdict(report.over_scored)}"
    )
    console.print(f"{report.machine}; load average at the end {report.load:.1f}")


def _verdict(ratio: Ratio) -> str:
    if ratio.high <= GOAL:
        return "reached"
    return "missed" if ratio.low > GOAL else "not decided: the interval holds the goal"
