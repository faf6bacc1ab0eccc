"""What `hdee-worker check` looks at, one coroutine each. To add a check, name it in CHECKS.

Only members may try libp2p, so a check registers this machine with the key in the folder, as the
worker that it is or will be. A registration replaces the token of the one before it: none is made
while an agent works from the folder.
"""

import asyncio
import shutil
from typing import TypeVar

from protocol import PROTOCOL_VERSION
from protocol.blobs import MAX_BLOB_BYTES, BlobRef
from protocol.capability import MIN_FLOPS_PER_SECOND, Capability
from protocol.versions import is_understood
from shared.clock import now
from shared.exchange.over_http import HttpSource
from shared.exchange.serving import BlobServer
from shared.exchange.sources import SourceFailed
from shared.identity import IdentityError
from shared.logs import configure
from shared.maddrs import NotTcp, tcp_address
from shared.swarm.peer import Peer, SwarmUnavailable
from shared.version import SOFTWARE_VERSION
from worker.check import REST, Check, Row, Scene, run_checks
from worker.client import CoordinatorClient
from worker.contact import MAX_AHEAD_SECONDS, seconds_ahead
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, Refused, WorkerError
from worker.folder import FolderInUse, WorkerFolder
from worker.host_checks import environment, locks, manners, open_files, port, power
from worker.machine_checks import compiler, device, memory, python, speed
from worker.manners.rules import Rules
from worker.reachability import ask, printable
from worker.screen import megabytes
from worker.settings import JoinSettings

Known = TypeVar("Known")

MIN_FREE_BYTES = 100 * 10**6
LOW_FREE_BYTES = 2 * 10**9
"""A shard, an expert and its training checkpoints fit; with less, some work is not offered."""

DHT_AHEAD_SECONDS = 3.0
JOIN_SECONDS = 20.0
READ_BYTES = 64 * 1024
OVER_HTTP = "until then blobs take the way over HTTP"
RUNS_HERE = "a worker runs from this folder"


async def check_all(settings: JoinSettings) -> list[Row]:
    """Looks at everything in CHECKS. What it starts and locks is given back."""
    scene = Scene(settings=settings, client=CoordinatorClient(settings.url))
    try:
        return await run_checks(CHECKS, scene)
    finally:
        await scene.close()


async def folder(scene: Scene) -> Row:
    """Can the worker keep its files here? Takes the folder's lock, and makes a key if none is."""
    root = scene.settings.folder
    try:
        scene.folder = WorkerFolder(root)
    except FolderInUse as error:
        scene.why_no_folder = RUNS_HERE
        return Row(state="ok", found=f"in use: {error}")
    except IdentityError as error:
        scene.why_no_folder = "the folder's key cannot be used"
        fix = f"move {root / 'worker.key'} away to begin as a new worker"
        return Row(state="failure", found=str(error), fix=fix)
    except (WorkerError, OSError) as error:
        scene.why_no_folder = "the folder cannot be used"
        return Row(state="failure", found=str(error), fix="choose another one with --folder")
    scene.client.identity = scene.folder.identity
    configure(path=root / "worker.log")
    free = shutil.disk_usage(root).free
    found = f"{root}: writable, {megabytes(free)} free"
    fix = f"make room, or choose another disk with --folder; {megabytes(LOW_FREE_BYTES)} will do"
    if free < LOW_FREE_BYTES:
        return Row(state="failure" if free < MIN_FREE_BYTES else "warning", found=found, fix=fix)
    return Row(state="ok", found=found)


async def coordinator(scene: Scene) -> Row:
    """Does an HDEE coordinator answer at the address?"""
    loop = asyncio.get_running_loop()
    sent, started = now(), loop.time()
    try:
        info = await scene.client.run_info()
    except CoordinatorBusy as error:
        return Row(state="failure", found=printable(str(error)), fix="try again in a minute")
    except (CoordinatorUnreachable, Refused) as error:
        found, _, fix = printable(str(error)).partition("; ")
        fix = fix or "compare the address with what the operator gave"
        return Row(state="failure", found=found, fix=fix)
    milliseconds = 1000 * (loop.time() - started)
    scene.info = info
    scene.ahead_seconds = seconds_ahead(info.server_time, sent=sent, received=now())
    return Row(
        state="ok",
        found=f"run {info.run!r} of {info.coordinator}, answered in {milliseconds:.0f} ms",
    )


async def protocol_version(scene: Scene) -> Row:
    """Do both sides speak the same protocol?"""
    info = _known(scene.info)
    if not is_understood(worker=PROTOCOL_VERSION, coordinator=info.protocol_version):
        theirs = printable(info.software_version)
        return Row(
            state="failure",
            found=f"the coordinator speaks version {info.protocol_version}, this worker "
            f"{PROTOCOL_VERSION}",
            fix=f"install hdee {theirs} (this is {SOFTWARE_VERSION})",
        )
    if info.protocol_version != PROTOCOL_VERSION:
        found = f"the coordinator speaks version {info.protocol_version} and understands ours"
        return Row(state="ok", found=f"{found}, {PROTOCOL_VERSION}")
    return Row(state="ok", found=f"version {PROTOCOL_VERSION} on both sides")


async def clock(scene: Scene) -> Row:
    """Do the clocks agree? The DHT refuses members whose clock is off by more than 3 s."""
    ahead = scene.ahead_seconds
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if abs(ahead) <= MAX_AHEAD_SECONDS:
        return Row(state="ok", found=found if abs(ahead) >= 0.05 else "agrees with the coordinator")
    fix = f"set this machine's clock, best by NTP: from {DHT_AHEAD_SECONDS:.0f} s on other peers"
    fix = f"{fix} refuse this one; {OVER_HTTP}"
    refused = abs(ahead) > DHT_AHEAD_SECONDS and not scene.settings.http_only
    return Row(state="failure" if refused else "warning", found=found, fix=fix)


async def registration(scene: Scene) -> Row:
    """May this machine join? Registers it, as one that offers nothing."""
    info, kept = _known(scene.info), scene.folder
    if kept is None:
        fix = "its worker.log says how the running worker fares; to test all, stop it first"
        if scene.why_no_folder != RUNS_HERE:
            fix = "mend the folder first, or choose another one with --folder"
        return Row(state="warning", found=f"not tested: {scene.why_no_folder}", fix=fix)
    nothing = Capability(
        device="cpu",
        device_name="hdee-worker check",
        num_threads=1,
        total_memory_bytes=0,
        free_memory_bytes=0,
        free_disk_bytes=0,
        flops_per_second=MIN_FLOPS_PER_SECOND,
        bfloat16=False,
        available_seconds=0.0,
    )
    try:
        kept.pin_coordinator(scene.settings.url, info.coordinator)
        scene.registered = await scene.client.register(
            info, nothing, name="", invite=scene.settings.invite, maddrs=()
        )
    except WorkerError as error:
        fix = "ask the operator of the run" if isinstance(error, Refused) else ""
        return Row(state="failure", found=printable(str(error)), fix=fix)
    return Row(state="ok", found=f"accepted as {scene.registered.certificate.certificate.peer}")


async def http(scene: Scene) -> Row:
    """Do blobs come over HTTP? Reads the beginning of a shard from the network role."""
    client = scene.client
    fix = "ask the operator: the network role's HTTP port must be open where the api's is"
    try:
        domains = await client.domains()
        if not domains:
            return Row(state="warning", found="not tested: the run has no shards yet")
        shard = domains[0].train_shard
        url = f"{client.url}/v1/blobs/{shard}"
        source = HttpSource(client.http, url, headers=lambda: client.headers)
        pieces = await source.pieces(BlobRef(digest=shard, size=MAX_BLOB_BYTES))
        ref = pieces.ref()
        if ref.digest != shard:
            raise SourceFailed(f"the piece list of {shard} is another blob's")
        wanted = min(READ_BYTES, ref.size)
        received = 0
        async with source.opened(ref, 0, wanted) as read:
            while received < wanted:
                received += len(await read(wanted - received))
    except (CoordinatorUnreachable, Refused, SourceFailed) as error:
        return Row(state="failure", found=printable(str(error)), fix=fix)
    return Row(state="ok", found="the network role sends blobs")


async def libp2p(scene: Scene) -> Row:
    """Can this machine join the DHT? Starts the worker's peer, and keeps it for the next check."""
    info, registered, kept = _known(scene.info), _known(scene.registered), _known(scene.folder)
    if not registered.bootstrap:
        fix = f"ask the operator: the network role has no libp2p peer; {OVER_HTTP}"
        return Row(state="failure", found="the coordinator names no peer to join", fix=fix)
    try:
        scene.peer = await Peer.start(
            identity=kept.identity,
            certificate=registered.certificate,
            coordinator=info.coordinator,
            run=info.run,
            listen=scene.settings.listen,
            bootstrap=registered.bootstrap,
            server=BlobServer(kept.blobs, lambda _digest, _peer: False),
        )
    except SwarmUnavailable as error:
        fix = f"is the port of --listen taken? {OVER_HTTP}"
        return Row(state="failure", found=printable(str(error)), fix=fix)
    peer = scene.peer
    deadline = asyncio.get_running_loop().time() + JOIN_SECONDS
    while not peer.joined and asyncio.get_running_loop().time() < deadline:
        await peer.beacon()
        await asyncio.sleep(0.2)
    if peer.joined:
        return Row(state="ok", found="joined the DHT and read the coordinator's beacon in it")
    if not peer.open:
        ports = _ports(registered.bootstrap)
        fix = f"let this machine open TCP connections to {ports}; {OVER_HTTP}"
        return Row(state="failure", found="no bootstrap peer can be dialled", fix=fix)
    fix = "ask the operator whether the network role is well"
    if abs(scene.ahead_seconds) > DHT_AHEAD_SECONDS:
        fix = "set this machine's clock"
    found = "a bootstrap peer can be dialled, but the coordinator's beacon is not found"
    return Row(state="failure", found=found, fix=f"{fix}; {OVER_HTTP}")


async def reachability(scene: Scene) -> Row:
    """Can others dial this machine? Nobody has to be reachable."""
    peer = _known(scene.peer)
    found = await ask(scene.client, peer.listening, announce=scene.settings.announce)
    words = found.words if found.state != "unknown" else f"not known: {found.words}"
    reachable = found.state == "reachable"
    return Row(state="ok" if reachable else "warning", found=words, fix=found.fix)


def _known(value: Known | None) -> Known:
    assert value is not None, "a check ran without what it needs"
    return value


def _is_understood(scene: Scene) -> bool:
    info = scene.info
    return info is not None and is_understood(
        worker=PROTOCOL_VERSION, coordinator=info.protocol_version
    )


def _ports(bootstrap: tuple[str, ...]) -> str:
    """Hosts and TCP ports of these multiaddresses, as a firewall's owner writes them."""
    found = []
    for maddr in bootstrap:
        try:
            address = tcp_address(maddr)
        except NotTcp:
            continue
        found.append(f"{address.host}:{address.port}")
    return ", ".join(dict.fromkeys(found)) or "the coordinator's libp2p port"


CHECKS = (
    Check(name="python", look=python),
    Check(name="device", look=device, applies=lambda scene: "devices" in (scene.torch or {})),
    Check(name="memory", look=memory),
    Check(name="compiler", look=compiler),
    Check(name="power", look=power),
    Check(name="manners", look=manners, applies=lambda scene: scene.settings.rules != Rules()),
    Check(name="open files", look=open_files),
    Check(name="folder", look=folder),
    Check(name="locks", look=locks, applies=lambda scene: scene.folder is not None),
    Check(name="port", look=port, applies=lambda scene: not scene.settings.http_only),
    Check(name="environment", look=environment),
    Check(name=REST, look=coordinator),
    Check(name="protocol", look=protocol_version, applies=lambda scene: scene.info is not None),
    Check(name="clock", look=clock, applies=lambda scene: scene.info is not None),
    Check(name="registration", look=registration, applies=_is_understood),
    Check(
        name="speed",
        look=speed,
        applies=lambda scene: scene.registered is not None and "devices" in (scene.torch or {}),
    ),
    Check(name="http", look=http, applies=lambda scene: scene.registered is not None),
    Check(
        name="libp2p",
        look=libp2p,
        applies=lambda scene: scene.registered is not None and not scene.settings.http_only,
    ),
    Check(name="reachability", look=reachability, applies=lambda scene: scene.peer is not None),
)
