"""Writes a report: the figures, the page, and last report.json, which names them by digest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.report.page import render_page, report_json
from coordinator.report.reading import check_replicates, read_results
from coordinator.report.sections import report_of
from coordinator.report.study import Study
from coordinator.scoring.outcome import Results
from shared.files import write_atomic
from shared.version import SOFTWARE_VERSION


@dataclass(frozen=True)
class Written:
    """The files of a report, and its summary."""

    page: Path
    numbers: Path
    figures: tuple[Path, ...]
    summary: tuple[str, ...]


def write_report(sources: Mapping[str, Path], *, into: Path, commands: Sequence[str]) -> Written:
    """Report on the results.json files of `sources`, by what to call each, into folder `into`.

    Several are replicates of one another. Raises ReportError, before anything is written, where
    one is not finished, does not hold together, or is no replicate of the first.
    """
    results = {name: read_results(path) for name, path in sources.items()}
    check_replicates(results)
    study = Study(runs=tuple(results.values()))
    report = report_of(study, commands=commands, software=SOFTWARE_VERSION)
    page = render_page(report)
    numbers = report_json(report, runs=[facts_of(run) for run in study.runs])
    (into / "figures").mkdir(parents=True, exist_ok=True)
    figures = []
    for figure in report.all_figures():
        figures.append(into / figure.file)
        write_atomic(figures[-1], figure.png)
    written = Written(
        page=into / "index.html",
        numbers=into / "report.json",
        figures=tuple(figures),
        summary=report.summary,
    )
    write_atomic(written.page, page.encode("utf-8"))
    write_atomic(written.numbers, numbers)
    return written


def facts_of(run: Results) -> dict[str, object]:
    """What a run is known by."""
    return {
        "run": run.run,
        "rng_seed": run.rng_seed,
        "unit": run.unit,
        "seed": run.seed,
        "dense": run.dense,
        "digests": dict(run.digests),
        "versions": dict(run.versions),
    }
