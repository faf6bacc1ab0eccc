"""`hdee-worker install-service`: the worker starts with the machine, and again when it fails."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shared.files import write_atomic
from shared.tables import show
from worker.errors import WorkerError
from worker.folder import WorkerFolder
from worker.owndata.flags import FLAG
from worker.service import launchd_plist, service_name, systemd_unit
from worker.settings import JoinSettings
from worker.verbs.joining import settings_of_join
from worker.verbs.options import JoinUrl

PATHS = {"--folder": "folder", "--activity-file": "activity_file"}
"""Flags whose relative path would mean another place to a service, with the setting it becomes."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service's file: where it belongs, what it holds, and what its owner does with it."""

    path: Path
    content: bytes
    start: tuple[str, ...]
    see: tuple[str, ...]
    remove: tuple[str, ...]


def install_service(
    context: typer.Context,
    url: JoinUrl,
    only_print: Annotated[
        bool, typer.Option("--print", help="Write the service's file to standard output only")
    ] = False,
) -> None:
    """Make the worker a service of yours: it starts with the machine and stops in good order.

    Takes every flag of `join`; see `hdee-worker join --help`. Writes a systemd user unit (on macOS
    a launchd agent) that runs this very program, starts nothing, and says how to start it, see its
    log and remove it. Installing it is agreeing to work for the coordinator (--yes).

    Example: hdee-worker install-service https://hdee.example.org --threads 50% --memory 4GB
    """
    settings = settings_of_join(context, [url, *context.args])
    command = service_command(settings, [url, *context.args], python=Path(sys.executable))
    service = make_service(settings, command, platform=sys.platform)
    if only_print:
        sys.stdout.write(service.content.decode())
        return
    WorkerFolder(settings.folder).close()
    try:
        service.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(service.path, service.content)
        # It may hold an invitation.
        service.path.chmod(0o600)
    except OSError as error:
        raise WorkerError(
            f"{service.path}: {error.strerror}; --print writes the file to standard output"
        ) from error
    for line in (f"wrote {service.path}", *_told(service)):
        show(line)


def service_command(
    settings: JoinSettings, arguments: Sequence[str], *, python: Path
) -> tuple[str, ...]:
    """The words that a service runs: absolute paths, the flags as given, --yes.

    Raises WorkerError where the program does not lie beside this Python.
    """
    program = python.absolute().with_name("hdee-worker")
    if not program.is_file():
        raise WorkerError(
            f"{program}: not there; install hdee into a virtual environment of its own, and run "
            "its hdee-worker"
        )
    given = (_absolute(word, settings) for word in arguments)
    words = [str(python.absolute()), str(program), "join", *given]
    for flag, field in PATHS.items():
        value = getattr(settings, field)
        if value is not None and str(Path(value).absolute()) not in words:
            # The last one counts.
            words += [flag, str(Path(value).absolute())]
    return (*words, *(() if "--yes" in arguments else ("--yes",)))


def _absolute(word: str, settings: JoinSettings) -> str:
    """A word of --offer-domain with the path that it means here; any other as it is."""
    for text in settings.own_texts:
        for start in (f"{text.domain}=", f"{FLAG}={text.domain}="):
            if word.startswith(start):
                return f"{start}{text.path}"
    return word


def make_service(settings: JoinSettings, command: Sequence[str], *, platform: str) -> Service:
    """The service's file for this system. Raises WorkerError where there is none of ours."""
    name = service_name(settings.url, settings.name)
    if platform == "darwin":
        log = settings.folder.absolute() / "service.log"
        path = Path.home() / "Library" / "LaunchAgents" / f"org.{name}.plist"
        label = f"org.{name}"
        return Service(
            path=path,
            content=launchd_plist(command, label=label, log=log),
            start=(f"launchctl bootstrap gui/$(id -u) {shlex.quote(str(path))}",),
            see=(f"tail -f {shlex.quote(str(log))}",),
            remove=(
                f"launchctl bootout gui/$(id -u)/{label}",
                f"rm {shlex.quote(str(path))}",
            ),
        )
    if not platform.startswith("linux"):
        raise WorkerError(f"{platform}: services are supported on Linux (systemd) and macOS")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = config / "systemd" / "user" / f"{name}.service"
    return Service(
        path=path,
        content=systemd_unit(command, about=settings.url).encode(),
        start=(
            "systemctl --user daemon-reload",
            f"systemctl --user enable --now {name}",
            "loginctl enable-linger    # runs on when you log out, and before you log in",
        ),
        see=(f"systemctl --user status {name}", f"journalctl --user -u {name} -f"),
        remove=(
            f"systemctl --user disable --now {name}",
            f"rm {shlex.quote(str(path))}",
            "systemctl --user daemon-reload",
        ),
    )


def _told(service: Service) -> list[str]:
    lines: list[str] = []
    for what, commands in (
        ("start it, now and with the machine:", service.start),
        ("see how it fares:", service.see),
        ("stop and remove it:", service.remove),
    ):
        lines += ["", what, *(f"  {command}" for command in commands)]
    return lines
