"""What the command lines of benchmarks have in common: an empty folder, refusals, text or JSON."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console


class AsJson(Protocol):
    """A report of plain values."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""


Report = TypeVar("Report", bound=AsJson)


def say(text: str) -> None:
    """How far a benchmark is, on standard error: standard output has the report alone."""
    print(text, file=sys.stderr, flush=True)


def carry_out(
    name: str,
    options: argparse.Namespace,
    *,
    run: Callable[[argparse.Namespace, Path], Report],
    show: Callable[[Report, Console], None],
    refused: type[Exception],
    within: Path | None = None,
) -> None:
    """Runs in an empty folder, below `within` if that is given, and prints as `options.format`
    says. What was `refused` ends the process with exit code 2.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"hdee-{name}-", dir=within) as folder:
            report = run(options, Path(folder))
    except refused as error:
        print(f"benchmarks.{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if options.format == "json":
        print(json.dumps(report.as_json(), indent=2))
    else:
        show(report, Console(width=None if sys.stdout.isatty() else 160))
