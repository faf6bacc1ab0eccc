"""The ledger itself, whether the run is served or not: is it whole, what is in it, a copy of it."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from coordinator.cli.errors import VerbError
from coordinator.cli.options import Database, Format, RunPath
from coordinator.cli.tables import plain, show, show_entries, show_json
from coordinator.database import open_existing_ledger
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.ledger.backup import backup as copy_ledger
from coordinator.ledger.queries import Verdict
from coordinator.runfile import load_run_file
from coordinator.scheduling.requirements import duration

SAY_SECONDS = 1.0
"""How often a long verb says how far it is."""

app = typer.Typer(no_args_is_help=True, help="Look into a run's ledger, served or not.")


@app.command()
def verify(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """Prove that the ledger forgot nothing: check its chain, rebuild its tables, compare them.

    Exit code 1, with each difference, when it does not hold.
    """
    ledger = _open(run_file, database)
    progress = Progress("entries replayed", say=_say)
    try:
        with ledger.read() as connection:
            verdict = queries.verify_ledger(connection, progress=progress.tell)
    except SQLAlchemyError as error:
        raise _no_ledger(ledger, error) from error
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
        raise _no_ledger(ledger, error) from error
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
    progress = Progress("copied", say=_say)
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


class Progress:
    """Says how far a long verb is, at most once in SAY_SECONDS, and when it expects to end."""

    def __init__(
        self, what: str, *, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._say = say
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._said = 0.0

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` so far. The first call begins the measurement."""
        now = self._clock()
        if self._first is None:
            self._first, self._said = (now, done), now
        began, before = self._first
        if now - self._said < SAY_SECONDS or not before < done < total:
            return
        self._said = now
        left = (now - began) * (total - done) / (done - before)
        self._say(f"{self._what}: {100 * done // total} %, about {duration(left)} left")


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


def _no_ledger(ledger: Ledger, error: SQLAlchemyError) -> VerbError:
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


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)  # noqa: T201 - progress is no output
