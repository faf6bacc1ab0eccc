"""The command line of the load benchmark."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import uvloop
from sqlalchemy import text as sql

from benchmarks.load.database import NoPostgres, database
from benchmarks.load.ground import Ground, make_run
from benchmarks.load.phases import Benchmark, Plan
from benchmarks.load.report import PhaseReport, Report, machine, render_end, render_phase
from benchmarks.load.server import ApiServer, ServerError, free_port, pin
from coordinator.ledger import Ledger, queries

SERVER_CORE, PLAYER_CORE = 0, 1
HEARTBEAT_SECONDS = 120.0
"""Of the run; Fishtest's. 10,000 workers then send 83 heartbeats a second."""

DESCRIPTION = """\
How many volunteers one api process carries. A temporary run is made whose ledger is full of open
assignments; the real api role serves it as a process of its own on core 0; from core 1 this
process plays the workers over real HTTP connections, with real keys and signatures.

1. join burst: --join-burst workers register, spread evenly over --join-seconds, while some of them
   hold leases and all who have joined heartbeat. No lease may run out, nobody may look dead.
2. the rest join, sixteen at a time, as fast as they are let in.
3. steady: --heartbeats and --leases a second for --seconds. A lease is asked for, acknowledged,
   renewed by progress two seconds later, and submitted or released after two more.
4. the server's CPU time for one request of each route.

Latencies count from the moment at which a request was due, so that a server that stands still is
seen to delay every request that waits for it. With PostgreSQL, whose processes share the cores as
the system likes, the server's CPU is the api's alone.

Exit code 0: no errors; 1: some; 2: the benchmark cannot run here.
"""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=int, default=10_000, help="registered workers (10000)")
    add("--heartbeats", type=float, default=83.0, help="of workers, a second in all (83)")
    add("--leases", type=float, default=120.0, help="asked for, a second in all (120)")
    add("--seconds", type=float, default=60.0, help="of steady load (60)")
    add("--join-burst", type=int, default=4400, help="workers that join in the burst (4400)")
    add("--join-seconds", type=float, default=60.0, help="that the burst takes (60)")
    add("--specs", type=int, default=20_000, help="open assignments in the ledger (20000)")
    add("--database", choices=("sqlite", "postgresql"), default="sqlite", help="(sqlite)")
    add("--reconnect", action="store_true", help="each request on a connection of its own")
    add("--find-limit", action="store_true", help="then raise the leases until something gives")
    add("--seed", type=int, default=0, help="of the arrival times (0)")
    add("--format", choices=("text", "json"), default="text", help="of standard output (text)")
    return parser.parse_args(words)


def run(options: argparse.Namespace, root: Path) -> Report:
    """The whole benchmark in the empty folder `root`. Raises NoPostgres, ServerError."""
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    report = Report(settings=vars(options), machine=machine())
    with database(options.database, port=free_port()) as url:
        _say(f"adding {options.specs} assignments to a new ledger on {options.database}")
        ground = make_run(
            root,
            url=url,
            port=free_port(),
            heartbeat_seconds=HEARTBEAT_SECONDS,
            specs=options.specs,
        )
        with ApiServer(ground, core=SERVER_CORE) as server:
            pin(PLAYER_CORE)
            benchmark = Benchmark(plan, ground, server, report=report, say=_say)
            uvloop.run(benchmark.run(_show if options.format == "text" else _skip))
        _count_entries(report, ground)
    return report


def _count_entries(report: Report, ground: Ground) -> None:
    ledger = Ledger(ground.url)
    try:
        with ledger.read() as connection:
            if connection.dialect.name == "postgresql":
                size = sql("SELECT pg_database_size(current_database())")
                report.ledger_bytes = connection.execute(size).scalar_one()
            while found := queries.read_entries(connection, after=report.entries):
                report.expired += sum(entry.kind == "expire" for entry in found)
                report.entries = found[-1].number
    finally:
        ledger.close()
    files = ground.folders.state.glob("ledger.sqlite*")
    report.ledger_bytes += sum(path.stat().st_size for path in files)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(phase: PhaseReport) -> None:
    print(render_phase(phase), flush=True)


def _skip(_phase: PhaseReport) -> None:
    """Phases are part of the JSON in the end."""


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _arguments(words)
    try:
        with tempfile.TemporaryDirectory(prefix="hdee-load-") as folder:
            report = run(options, Path(folder))
    except (NoPostgres, ServerError) as error:
        print(f"benchmarks.load: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(
        json.dumps(report.as_json(), indent=2) if options.format == "json" else render_end(report)
    )
    raise SystemExit(1 if report.errors else 0)
