"""The ledger itself, whether the run is served or not: is it whole, what is in it, a copy of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from coordinator.cli.errors import VerbError
from coordinator.cli.options import Database, Format, RunPath
from coordinator.cli.tables import show_entries
from coordinator.database import open_existing_ledger
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.ledger.backup import backup as copy_ledger
from coordinator.ledger.queries import Verdict
from coordinator.runfile import load_run_file
from shared.tables import Progress, show, show_json

app = typer.Typer(no_args_is_help=True, help="Look into a run's ledger, served or not.")


@app.command()
def verify(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """Prove that the ledger forgot nothing: check its chain, rebuild its tables, compare them.

    Exit code 1, with each difference, when it does not hold.
    """
    ledger = _open(run_file, database)
    progress = Progress("entries replayed")
    try:
        with ledger.read() as connection:
            verdict = queries.verify_ledger(connection, progress=progress.tell)
    except SQLAlchemyError as error:
        raise not_a_ledger(ledger, error) from error
    finally:
        ledger.close()
    if format == "json":
        show_json(facts_of(verdict))
    else:
        for line in lines_of(verdict, name=str(ledger.url)):
            show(line)
    if not verdict.holds:
        raise typer.Exit(1)


@app.command()
def entries(
    run_file: RunPath,
    after: Annotated[int, typer.Option("--after", min=0, help="Go on after this number")] = 0,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="How many to show")
    ] = 100,
    database: Database = None,
    format: Format = "text",
) -> None:
    """List what was decided, in order."""
    ledger = _open(run_file, database)
    try:
        with ledger.read() as connection:
            found = queries.read_entries(connection, after=after, limit=limit)
    except SQLAlchemyError as error:
        raise not_a_ledger(ledger, error) from error
    finally:
        ledger.close()
    if format == "json":
        show_json([_as_json(entry) for entry in found])
        return
    show_entries(found, times=[_time(entry.at) for entry in found])
    if len(found) == limit:
        show(f"more: --after {found[-1].number}")


def backup(
    run_file: RunPath,
    target: Annotated[Path, typer.Argument(help="A new file for the copy")],
    database: Database = None,
    format: Format = "text",
) -> None:
    """Copy the ledger while it is in use, and prove the copy whole before it gets its name."""
    ledger = _open(run_file, database)
    progress = Progress("copied")
    try:
        report = copy_ledger(ledger, target, lambda share: progress.tell(int(100 * share), 100))
    finally:
        ledger.close()
    if format == "json":
        show_json(
            {
                "path": str(report.path),
                "bytes": report.num_bytes,
                "last_entry": report.last_entry,
                "last_digest": report.last_digest,
            }
        )
    else:
        show(
            f"wrote {report.path}: {report.num_bytes:,} bytes, up to entry {report.last_entry} "
            f"with digest {report.last_digest}"
        )


def facts_of(verdict: Verdict) -> dict[str, object]:
    """A verification's outcome for programs."""
    broken = verdict.broken
    return {
        "holds": verdict.holds,
        "entries": verdict.num_entries,
        "head": verdict.head,
        "broken": None if broken is None else {"number": broken.number, "reason": broken.reason},
        "rows": verdict.rows,
        "differences": [
            {
                "table": one.table,
                "key": list(one.key),
                "found": one.found,
                "expected": one.expected,
            }
            for one in verdict.differences
        ],
    }


def lines_of(verdict: Verdict, *, name: str) -> list[str]:
    """A verification's outcome for people, the conclusion last."""
    lines = [f"ledger {name}: {verdict.num_entries} entries, head digest {verdict.head or 'none'}"]
    if verdict.broken is not None:
        return [
            *lines,
            f"entry {verdict.broken.number}: {verdict.broken.reason}",
            "BROKEN: the chain does not hold from there on; go back to a backup",
        ]
    counts = ", ".join(f"{name} {count}" for name, count in verdict.rows.items())
    lines.append(f"rows that the entries give: {counts}")
    for one in verdict.differences:
        key = ", ".join(map(str, one.key))
        lines += [
            f"{one.table} {key}:",
            f"  found     {_shown(one.found, one.expected)}",
            f"  expected  {_shown(one.expected, one.found)}",
        ]
    if verdict.differences:
        what = f"{len(verdict.differences)} row(s) differ from what the entries say"
        return [*lines, f"BROKEN: {what}; somebody wrote past the ledger: go back to a backup"]
    return [*lines, "the chain is whole, and the tables are what it says"]


def _shown(row: dict[str, object] | None, other: dict[str, object] | None) -> str:
    """The columns in which a row differs from the other; all of them where there is no other."""
    if row is None:
        return "no such row"
    differing = row if other is None else {k: v for k, v in row.items() if other.get(k) != v}
    return ", ".join(f"{name} {value!r}" for name, value in differing.items())


def _open(run_file: Path, database: str | None) -> Ledger:
    run = load_run_file(run_file)
    return open_existing_ledger(run, RunFolders(run.folder), database)


def not_a_ledger(ledger: Ledger, error: SQLAlchemyError) -> VerbError:
    """What to tell an operator whose ledger cannot be read."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return VerbError(
        f"ledger {ledger.url}: cannot be read as one: {reason}; is it a ledger of this version? "
        "`hdee-coordinator serve` brings an older one to the newest schema"
    )


def _as_json(entry: queries.Entry) -> dict[str, object]:
    return {
        "number": entry.number,
        "at": entry.at,
        "kind": entry.kind,
        "facts": dict(entry.facts),
        "rows": [
            {"table": row.table, "new": row.new, "values": dict(row.values)} for row in entry.rows
        ],
        "previous": entry.previous,
        "digest": entry.digest,
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
