"""`hdee-coordinator report`: the page, the figures and the numbers of finished runs."""

import importlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.options import Format
from coordinator.folders import RunFolders
from coordinator.report.reading import ReportError
from coordinator.runfile import load_run_file
from shared.tables import show, show_json


def report(
    run_files: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN.toml...",
            help="A finished run, or several that differ in nothing but rng_seed: replicates",
        ),
    ],
    into: Annotated[
        Path | None, typer.Option("--into", help="The report's folder [report, in the run's]")
    ] = None,
    format: Format = "text",
) -> None:
    """Write what a finished run found: one page for a browser, its figures, and report.json.

    Several run files are replicates: their differences then hold the noise of training, too.
    """
    repeated = sorted({str(path) for path in run_files if run_files.count(path) > 1})
    if repeated:
        raise WrongUsage(f"{', '.join(repeated)}: named more than once, expected different runs")
    folders = {str(path): RunFolders(load_run_file(path).folder) for path in run_files}
    target = into or next(iter(folders.values())).root / "report"
    # matplotlib takes a second to load, which no other verb should wait for
    writing = importlib.import_module("coordinator.report.writing")
    try:
        written = writing.write_report(
            {name: one.state / "results.json" for name, one in folders.items()},
            into=target,
            commands=commands_for(run_files),
        )
    except ReportError as error:
        raise VerbError(str(error)) from error
    except OSError as error:
        raise VerbError(f"{target}: the report cannot be written: {error}") from error
    if format == "json":
        show_json(
            {
                "page": str(written.page),
                "report": str(written.numbers),
                "figures": [str(path) for path in written.figures],
                "summary": list(written.summary),
            }
        )
        return
    for sentence in written.summary:
        show(sentence)
    show(f"wrote {written.page}, {written.numbers} and {len(written.figures)} figures")


def commands_for(run_files: Sequence[Path]) -> list[str]:
    """What makes the same report again, with run files named from the folder of them all."""
    paths = [path.absolute() for path in run_files]
    folder = os.path.commonpath([path.parent for path in paths])
    names = [shlex.quote(path.relative_to(folder).as_posix()) for path in paths]
    trained = [f"hdee-coordinator train-local {name}" for name in names]
    return [*trained, f"hdee-coordinator report {' '.join(names)}"]
