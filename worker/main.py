"""`hdee-worker`: the command line of the volunteer.

Exit codes: 0 done, 1 failed, 2 usage, 3 the coordinator cannot be reached, 4 it refused.
"""

import asyncio
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol import PROTOCOL_VERSION
from shared.blobs import BlobStore
from shared.clock import now
from shared.identity import IdentityError
from shared.version import SOFTWARE_VERSION
from worker.blob_verbs import app as blob_verbs
from worker.capability import CapabilityError
from worker.contradictions import (
    refuse_idle_beyond_the_stay,
    refuse_listening_over_http,
    warnings,
)
from worker.errors import WorkerError
from worker.flags import (
    NETWORK,
    ActivityFile,
    Disk,
    Download,
    FreeMemoryAfter,
    GpuMemory,
    HoursFlag,
    JoinCommand,
    MaxOtherCpu,
    Memory,
    Nice,
    OnBattery,
    OnlyWhenIdle,
    Threads,
    Upload,
)
from worker.limits import (
    Machine,
    parse_cap,
    parse_disk,
    parse_free_after,
    parse_memory,
    parse_niceness,
    parse_rules,
    parse_threads,
)
from worker.owndata.flags import agreed_to_offer, parse_own_texts
from worker.owndata.texts import OwnTexts
from worker.settings import (
    LISTEN,
    NICENESS,
    JoinSettings,
    default_folder,
    parse_addresses,
    parse_announce,
    parse_checkpoint_every,
    parse_duration,
    parse_listen,
    parse_rate,
)
from worker.sharing import parse_devices
from worker.verbs import can_join, install_service, orders
from worker.verbs.check import check
from worker.verbs.joining import ANY_FLAGS
from worker.verbs.logs import logs
from worker.verbs.status import status
from worker.verbs.why import why

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})
"""What a file system says that takes no more from us."""

if TYPE_CHECKING:
    from worker.consent import Consent

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Lend this computer to a run: train experts for a coordinator, stop whenever you like.\n\n"
        "Begin with: hdee-worker check URL, then hdee-worker join URL. The first join shows what "
        "would run, what it takes and what leaves this machine, and asks."
    ),
)

Url = Annotated[str, typer.Argument(help="The coordinator, such as https://hdee.example.org")]
Folder = Annotated[
    Path | None, typer.Option(help="Key, blobs and checkpoints go here [~/.local/share/hdee/...]")
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        help="Where this worker's peer listens, a multiaddress of TCP [/ip4/0.0.0.0/tcp/0: any "
        "port]; may be repeated",
        rich_help_panel=NETWORK,
    ),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(
        help="HOST:PORT that others should dial, if a router forwards another port or a name "
        "leads here [where the coordinator sees this machine]; may be repeated",
        rich_help_panel=NETWORK,
    ),
]
HttpOnly = Annotated[
    bool, typer.Option(help="Take part over HTTP, without libp2p", rich_help_panel=NETWORK)
]
Insecure = Annotated[
    bool, typer.Option(help="Allow plain http to another machine", rich_help_panel=NETWORK)
]
Invite = Annotated[
    str | None, typer.Option(help="Invitation from the operator", rich_help_panel=NETWORK)
]


@app.command(cls=JoinCommand)
def join(
    context: typer.Context,
    url: Url,
    folder: Folder = None,
    name: Annotated[str, typer.Option(help="A name for the operator's tables")] = "",
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda, cuda:1 or mps [the best there is], all: every GPU; may be repeated: "
            "each trains on its own, and what they may use is divided"
        ),
    ] = None,
    threads: Threads = None,
    memory: Memory = None,
    gpu_memory: GpuMemory = None,
    disk: Disk = None,
    upload: Upload = None,
    download: Download = None,
    nice: Nice = NICENESS,
    only_when_idle: OnlyWhenIdle = None,
    activity_file: ActivityFile = None,
    hours: HoursFlag = None,
    on_battery: OnBattery = False,
    max_other_cpu: MaxOtherCpu = None,
    free_memory_after: FreeMemoryAfter = "5m",
    listen: Listen = None,
    announce: Announce = None,
    http_only: HttpOnly = False,
    insecure: Insecure = False,
    invite: Invite = None,
    stay: Annotated[
        str | None,
        typer.Option("--for", help="Leave in good order after this time, such as 8h or 90m"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Agree to work for this coordinator without being asked")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and take no work")
    ] = False,
    offer_domain: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH: train an expert of a domain of your own, whose text (.txt, .md, "
            ".jsonl, or a folder of them) stays on this machine. Its weights leave it, and may "
            "give away passages that they memorised. May be repeated"
        ),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option(help="Most training that a power cut may cost, such as 30s or 2m")
    ] = "2m",
) -> None:
    """Join a run and train until it is finished.

    The first time, shows what would run, what it takes and what leaves this machine, and asks.

    Ctrl-C once finishes the step, writes a checkpoint and gives the lease back, so that another
    worker goes on where you stopped. Ctrl-C twice stops at once.

    All flags but --folder, --yes and --dry-run may also stand in worker.toml in the folder, one a
    line, such as only-when-idle = "5m"; what is given here counts instead.

    Example: hdee-worker join https://hdee.example.org --threads 50% --only-when-idle 10m --for 8h
    """
    refuse_listening_over_http(listen, http_only=http_only)
    machine, place = Machine.this(), folder or default_folder(url)
    devices = parse_devices(device)
    settings = JoinSettings(
        url=url,
        folder=place,
        name=name,
        device=devices[0] if len(devices) == 1 else None,
        devices=devices if len(devices) > 1 else (),
        num_threads=None if threads is None else parse_threads(threads, machine),
        memory_bytes=None if memory is None else parse_memory(memory, machine),
        gpu_memory=None if gpu_memory is None else parse_cap("--gpu-memory", gpu_memory),
        rules=parse_rules(
            only_when_idle=only_when_idle,
            hours=hours,
            on_battery=on_battery,
            max_other_cpu=max_other_cpu,
        ),
        activity_file=activity_file,
        free_after_seconds=parse_free_after(free_memory_after),
        niceness=parse_niceness(nice),
        listen=parse_addresses("--listen", listen, parse_listen) or (LISTEN,),
        announce=parse_addresses("--announce", announce, parse_announce),
        upload_bytes_per_second=None if upload is None else parse_rate("--upload", upload),
        download_bytes_per_second=None if download is None else parse_rate("--download", download),
        disk_bytes=None if disk is None else parse_disk(disk, place),
        http_only=http_only,
        insecure=insecure,
        invite=invite,
        stay_seconds=None if stay is None else parse_duration(stay),
        checkpoint_seconds=parse_checkpoint_every(checkpoint_every),
        own_texts=parse_own_texts(offer_domain),
    )
    refuse_idle_beyond_the_stay(settings)
    if context.obj is not None:
        context.obj(settings)
        return
    _warn(settings)
    if dry_run:
        can_join.dry_run(settings)
    elif _agreed_to_offer(settings, yes) and (consent := _consent(settings, yes)):
        raise typer.Exit(asyncio.run(_join(settings, consent)))


@app.command()
def version(
    format: Annotated[str, typer.Option("--format", help="text or json")] = "text",
) -> None:
    """Print the version of the software and of the protocol it speaks."""
    if format == "json":
        print(json.dumps({"software": SOFTWARE_VERSION, "protocol": PROTOCOL_VERSION}))
    else:
        print(f"hdee-worker {SOFTWARE_VERSION}, protocol {PROTOCOL_VERSION}")


for verb in (status, why, *orders.VERBS, logs):
    app.command()(verb)
app.command(context_settings=ANY_FLAGS)(check)
app.command("can-join", context_settings=ANY_FLAGS)(can_join.can_join)
app.command("install-service", context_settings=ANY_FLAGS)(install_service.install_service)
app.add_typer(blob_verbs, name="blobs")


def _warn(settings: JoinSettings) -> None:
    blobs = settings.folder / "blobs"
    held = BlobStore(blobs).size_on_disk() if blobs.is_dir() else 0
    for words in warnings(settings, held_bytes=held, now=now()):
        print(f"hdee-worker: warning: {words}", file=sys.stderr)


def _agreed_to_offer(settings: JoinSettings, yes: bool) -> bool:
    texts = OwnTexts(settings.folder, settings.own_texts)
    return not texts.offered or agreed_to_offer(texts, given=yes)


def _consent(settings: JoinSettings, yes: bool) -> "Consent | None":
    from worker.consent import obtain_consent  # noqa: PLC0415 - as in _join

    return obtain_consent(settings, given=yes)


async def _join(settings: JoinSettings, consent: "Consent") -> int:
    # The agent's libraries take a second to load, which no other verb should wait for.
    from worker.running import run_worker  # noqa: PLC0415

    return await run_worker(settings, measured=consent.measured)


def main() -> None:
    """Entry point of the `hdee-worker` script."""
    try:
        app()
    except (WorkerError, IdentityError, CapabilityError) as error:
        print(f"hdee-worker: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        words = f"{where}{error.strerror}; make room, or choose another folder with --folder"
        print(f"hdee-worker: {words}", file=sys.stderr)
        sys.exit(1)
