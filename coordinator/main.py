"""`hdee-coordinator`: the command line of the operator.

Exit codes: 0 done, 1 failed, 2 usage, 3 the coordinator cannot be reached, 4 it refused.
"""

import asyncio
import importlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer
from pydantic import ValidationError

from coordinator.cli import blobs, corpora, ledger, looks, mixing, orders, plan
from coordinator.cli.errors import VerbError
from coordinator.cli.export import export
from coordinator.cli.generate import generate
from coordinator.cli.local import train_local
from coordinator.cli.options import Database, Format, RunPath
from coordinator.cli.remote import address_of
from coordinator.cli.report import report
from coordinator.database import DATABASE_VARIABLE, open_ledger
from coordinator.folders import RunFolders
from coordinator.init import DEFAULT_PRESET, InitError, init_folder, presets
from coordinator.ledger.errors import LedgerError
from coordinator.local.occupancy import FolderInUse, occupied
from coordinator.roles import RoleContext
from coordinator.runfile import RunFile, RunFileError, load_run_file
from coordinator.scoring.table import render_contents
from coordinator.serving import ServeError, check_addresses, check_keys, invite_of
from coordinator.status import render_status
from coordinator.supervisor import RoleKeepsDying, Supervisor
from coordinator.text.prepared import PrepareError
from coordinator.text.sources import SourceError
from protocol import PROTOCOL_VERSION
from protocol.views import StatusView
from shared import logs
from shared.clock import now
from shared.identity import IdentityError
from shared.version import SOFTWARE_VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    help="Run a swarm: a run file and volunteers' computers become a scored ensemble of experts.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 the coordinator cannot be reached, "
    "4 it refused.",
)

EXPECTED = (
    FolderInUse,
    RunFileError,
    PrepareError,
    SourceError,
    InitError,
    ServeError,
    LedgerError,
    IdentityError,
    RoleKeepsDying,
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The run's folder; made if it is missing")],
    preset: Annotated[
        str, typer.Option(help=f"What the run file begins with: {', '.join(presets())}")
    ] = DEFAULT_PRESET,
) -> None:
    """Write a commented run.toml and the run's keys, and say what to do next."""
    for path in init_folder(folder, preset=preset):
        print(f"wrote {path}")
    print(f"next: read {folder / 'run.toml'}, then hdee-coordinator serve {folder / 'run.toml'}")


@app.command()
def check(run_file: RunPath, database: Database = None, format: Format = "text") -> None:
    """Check a run file and its keys without starting anything."""
    run, folders = _load(run_file)
    check_keys(folders)
    where = str(open_ledger(run, folders, database).url)
    facts = {
        "run": run.run.name,
        "folder": str(folders.root),
        "domains": sorted(run.domains),
        "schemes": list(run.plan.schemes),
        "prepared": folders.prepared.exists(),
        "ledger": where,
        "invite": invite_of(run, folders),
    }
    if format == "json":
        print(json.dumps(facts))
    else:
        print(f"{run_file} is right: run {run.run.name}, domains {', '.join(sorted(run.domains))}")
        print(f"ledger {where}")
        if facts["invite"]:
            print(f"volunteers join with --invite {facts['invite']}")


@app.command()
def serve(
    typed: typer.Context,
    run_file: RunPath,
    role: Annotated[
        Literal["prepare", "api", "network", "scorer"] | None,
        typer.Option(help="Run one role alone instead of supervising all of them"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Allow plain http beyond this machine (a private network)")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="TLS key, PEM")] = None,
    database: Database = None,
    supervised: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Prepare the text, then serve the run until Ctrl-C. A restart goes on where it stopped."""
    run, folders = _load(run_file)
    check_keys(folders)
    check_addresses(run.listen, insecure=insecure, tls_cert=tls_cert, tls_key=tls_key)
    open_ledger(run, folders, database).close()
    folders.create()
    typed.with_resource(occupied(folders, by="hdee-coordinator serve", shared=True, now=now()))
    if role is not None:
        logs.configure(path=folders.logs / f"{role}.log")
        context = RoleContext(
            run=run,
            folders=folders,
            supervised=supervised,
            tls_cert=tls_cert,
            tls_key=tls_key,
            database=database,
        )
        try:
            importlib.import_module(f"coordinator.roles.{role}").run(context)
        except Exception:
            logging.getLogger(__name__).exception("the role ends")
            raise
        return
    logs.configure(path=folders.logs / "supervisor.log")
    arguments = ["--insecure"] if insecure else []
    for flag, path in (("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        arguments += [flag, str(path)] if path else []
    supervisor = Supervisor(
        run_file,
        folders,
        arguments=tuple(arguments),
        environment={DATABASE_VARIABLE: database} if database else {},
        say=_say,
    )
    raise typer.Exit(asyncio.run(_supervise(supervisor, run)))


@app.command()
def status(
    url: Annotated[
        str, typer.Argument(help="The coordinator, such as http://127.0.0.1:8700, or a run file")
    ],
    format: Format = "text",
) -> None:
    """Show where a run stands. Needs no token."""
    if Path(url).is_file():
        url = address_of(load_run_file(Path(url)), None)
    view = _get(url, "/v1/status", StatusView)
    print(view.model_dump_json(indent=2) if format == "json" else render_status(view))


@app.command()
def score(run_file: RunPath, format: Format = "text") -> None:
    """Print the table of a finished run: perplexity and bits per byte by domain and column."""
    _, folders = _load(run_file)
    path = folders.state / "results.json"
    if not path.exists():
        print(f"hdee-coordinator: {path} is missing: the run is not finished", file=sys.stderr)
        raise typer.Exit(1)
    results = json.loads(path.read_text())
    if format == "json":
        print(json.dumps(results, indent=2))
    else:
        print(render_contents(results))


@app.command()
def version(format: Format = "text") -> None:
    """Print the version of the software and of the protocol it speaks."""
    if format == "json":
        print(json.dumps({"software": SOFTWARE_VERSION, "protocol": PROTOCOL_VERSION}))
    else:
        print(f"hdee-coordinator {SOFTWARE_VERSION}, protocol {PROTOCOL_VERSION}")


for verb in (
    plan.plan,
    *looks.VERBS,
    *orders.VERBS,
    ledger.backup,
    report,
    train_local,
    export,
    generate,
):
    app.command()(verb)
app.add_typer(ledger.app, name="ledger")
app.add_typer(blobs.app, name="blobs")
app.add_typer(corpora.app, name="corpora")
app.add_typer(mixing.app, name="mix")


def _load(run_file: Path) -> tuple[RunFile, RunFolders]:
    run = load_run_file(run_file)
    return run, RunFolders(run.folder)


def _get(url: str, path: str, kind: type[StatusView]) -> StatusView:
    try:
        response = httpx.get(url.rstrip("/") + path, timeout=10.0)
        response.raise_for_status()
        return kind.model_validate_json(response.content)
    except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
        print(
            f"hdee-coordinator: {url} gives no status: {error}; is it served (hdee-coordinator "
            "serve), and is this its address?",
            file=sys.stderr,
        )
        raise typer.Exit(3) from error


async def _supervise(supervisor: Supervisor, run: RunFile) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    code = await supervisor.prepare()
    if code:
        return code
    listen = run.listen
    _say(f"serving run {run.run.name} at {listen.api_host}:{listen.api_port}")
    await supervisor.run()
    return 0


def _say(text: str) -> None:
    logging.getLogger(__name__).info("%s", text)
    print(text, flush=True)


def main() -> None:
    """Entry point of the `hdee-coordinator` script."""
    try:
        app()
    except VerbError as error:
        print(f"hdee-coordinator: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except EXPECTED as error:
        print(f"hdee-coordinator: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RunFileError) else 1)


if __name__ == "__main__":
    main()
