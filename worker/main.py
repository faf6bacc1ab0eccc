"""`hdee-worker`: the command line of the volunteer.

Exit codes: 0 done, 1 failed, 2 usage, 3 the coordinator cannot be reached, 4 it refused.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from protocol import PROTOCOL_VERSION
from shared import logs
from shared.identity import IdentityError
from shared.version import SOFTWARE_VERSION
from worker.agent import Agent
from worker.capability import CapabilityError
from worker.errors import WorkerError
from worker.folder import WorkerFolder
from worker.screen import TextScreen
from worker.settings import JoinSettings, default_folder, parse_bytes, parse_duration

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Lend this computer to a run: train experts for a coordinator, stop whenever you like.",
)


@app.command()
def join(
    url: Annotated[str, typer.Argument(help="The coordinator, such as https://hdee.example.org")],
    folder: Annotated[
        Path | None, typer.Option(help="Key, blobs and checkpoints go here [~/.local/share/hdee]")
    ] = None,
    name: Annotated[str, typer.Option(help="A name for the operator's tables")] = "",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps [the best there is]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads that training may use")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory that training may use, such as 700MB or 2GB")
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Where other peers may reach this one, a libp2p address")
    ] = "/ip4/0.0.0.0/tcp/0",
    http_only: Annotated[bool, typer.Option(help="Take part over HTTP, without libp2p")] = False,
    insecure: Annotated[bool, typer.Option(help="Allow plain http to another machine")] = False,
    invite: Annotated[str | None, typer.Option(help="Invitation from the operator")] = None,
    stay: Annotated[
        str | None,
        typer.Option("--for", help="Leave in good order after this time, such as 8h or 90m"),
    ] = None,
) -> None:
    """Join a run and train until it is finished.

    Ctrl-C once finishes the step, writes a checkpoint and gives the lease back, so that another
    worker goes on where you stopped. Ctrl-C twice stops at once.
    """
    settings = JoinSettings(
        url=url,
        folder=folder or default_folder(url),
        name=name,
        device=device,
        num_threads=threads,
        memory_bytes=parse_bytes(memory) if memory else None,
        listen=(listen,),
        http_only=http_only,
        insecure=insecure,
        invite=invite,
        stay_seconds=None if stay is None else parse_duration(stay),
    )
    raise typer.Exit(asyncio.run(_join(settings)))


@app.command()
def version(
    format: Annotated[str, typer.Option("--format", help="text or json")] = "text",
) -> None:
    """Print the version of the software and of the protocol it speaks."""
    if format == "json":
        print(json.dumps({"software": SOFTWARE_VERSION, "protocol": PROTOCOL_VERSION}))
    else:
        print(f"hdee-worker {SOFTWARE_VERSION}, protocol {PROTOCOL_VERSION}")


async def _join(settings: JoinSettings) -> int:
    folder = WorkerFolder(settings.folder)
    logs.configure(path=folder.root / "worker.log")
    screen = TextScreen(settings.name)
    agent = Agent(settings, folder, screen)
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            os._exit(130)
        screen.say("stopping: finishing the step and writing a checkpoint (again: stop now)")
        agent.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await agent.run()
    finally:
        folder.close()


def main() -> None:
    """Entry point of the `hdee-worker` script."""
    try:
        app()
    except (WorkerError, IdentityError, CapabilityError) as error:
        print(f"hdee-worker: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
