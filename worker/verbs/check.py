"""`hdee-worker check`: what works between this machine and a run, and how to mend what does not."""

import asyncio

import typer

from shared.tables import show
from worker.verbs.joining import settings_of_join
from worker.verbs.options import Format, JoinUrl


def check(context: typer.Context, url: JoinUrl, format: Format = "text") -> None:
    """Say what works between this machine and a run, and how to mend what does not.

    Takes every flag of `join`; see `hdee-worker join --help`. Give it those that you will join
    with: what they ask of this machine is tested, too.

    Tests Python, torch and the device, memory, power, the folder and its disk, the port, proxies,
    the coordinator, the clock, how fast the steps are that are on offer, blobs over HTTP, libp2p,
    and whether others can dial this machine.
    For that it registers with the key in the folder, which it makes if there is none, as a worker
    that offers nothing. While a worker runs from the folder it does not register (that worker would
    lose its token) and leaves out what needs it. Exit code 0: this machine can take part, warnings
    or not; 1: it cannot; 3: the coordinator cannot be reached.

    Example: hdee-worker check https://hdee.example.org --device cuda
    """
    settings = settings_of_join(context, [url, *context.args])
    # What measures and calls takes a second to load, which no wrong flag should wait for.
    from worker.check import as_json, as_text, exit_code  # noqa: PLC0415
    from worker.checks import check_all  # noqa: PLC0415

    rows = asyncio.run(check_all(settings))
    show(as_json(rows) if format == "json" else as_text(rows))
    raise typer.Exit(exit_code(rows))
