"""What `hdee-worker check` looks at of the system: locks, ports, limits, proxies and power.

Each check is a coroutine; `worker.checks.CHECKS` names them all.
"""

import errno
import fcntl
import os
import resource
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]

from shared.clock import now
from shared.files import write_atomic
from shared.maddrs import tcp_address
from worker.check import Row, Scene
from worker.manners.senses import Senses
from worker.settings import is_loopback

PROBE = ".check"
MIN_OPEN_FILES = 128
LOW_OPEN_FILES = 1024
"""Every connection to a peer is an open file, and libp2p keeps up to some hundred."""


async def locks(scene: Scene) -> Row:
    """Do renames, links and locks hold in the folder? Network file systems may lack them."""
    assert scene.folder is not None, "the folder comes first"
    problem = problem_of_folder(scene.folder.root)
    if not problem:
        return Row(state="ok", found="files are replaced, linked and locked as they should be")
    fix = "choose a folder on a disk of this machine with --folder"
    return Row(state="failure", found=problem, fix=fix)


async def port(scene: Scene) -> Row:
    """Are the ports of --listen free? Port 0 takes any that is."""
    taken = [
        words
        for maddr in scene.settings.listen
        if (words := problem_of_listening(maddr)) is not None
    ]
    if not taken:
        return Row(state="ok", found=f"{', '.join(scene.settings.listen)}: free")
    if scene.folder is None:
        return Row(state="ok", found=f"{'; '.join(taken)}: by the worker that runs, it seems")
    fix = "choose another address or port with --listen, or 0 for any port"
    return Row(state="failure", found="; ".join(taken), fix=fix)


async def open_files(_scene: Scene) -> Row:
    """May enough files be open at once?"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judge_open_files(soft, hard)


async def environment(scene: Scene) -> Row:
    """Do proxies of the environment stand between this machine and the coordinator?"""
    host = urlsplit(scene.settings.url).hostname or ""
    return judge_proxies(
        urllib.request.getproxies(),
        url=scene.settings.url,
        bypassed=bool(urllib.request.proxy_bypass(host)),
    )


async def power(_scene: Scene) -> Row:
    """Does the machine run on its battery now, and may it fall asleep?"""
    read = getattr(psutil, "sensors_battery", None)
    battery = None if read is None else read()
    plugged = None if battery is None else battery.power_plugged
    return judge_power(plugged, percent=None if battery is None else battery.percent)


async def manners(scene: Scene) -> Row:
    """Can the rules of the owner be followed: does the machine tell what they ask about?"""
    settings = scene.settings
    senses = Senses(settings.rules, activity_file=settings.activity_file, now=now()).described()
    found = ", ".join(sense.name for sense in senses if not sense.missing) or "nothing"
    missing = "; ".join(f"{one.name}: {one.missing}" for one in senses if one.missing)
    if not missing:
        return Row(state="ok", found=f"looks at {found}")
    fix = "what is not seen does not stop training: use --hours, or `hdee-worker pause`"
    if any(not sense.missing for sense in senses):
        return Row(state="ok", found=f"looks at {found} (not {missing})")
    return Row(state="warning", found=f"sees nothing of what the rules ask: {missing}", fix=fix)


def problem_of_folder(root: Path) -> str:
    """What this file system does not do that a worker builds on; empty: nothing."""
    probe, linked = root / PROBE, root / f"{PROBE}.link"
    try:
        linked.unlink(missing_ok=True)
        write_atomic(probe, b"probe")
        os.link(probe, linked)
        with probe.open("rb") as first, probe.open("rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ""
        return f"{root}: locks do not hold here, so that two workers could use one folder"
    except OSError as error:
        return f"{root}: {error.strerror}"
    finally:
        linked.unlink(missing_ok=True)
        probe.unlink(missing_ok=True)


def problem_of_listening(maddr: str) -> str | None:
    """Why nobody can listen at a multiaddress of TCP now; None: somebody can."""
    address = tcp_address(maddr)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address.host, address.port))
            listener.listen(1)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EAFNOSUPPORT: "this machine has no IPv6",
            errno.EACCES: "ports below 1024 are for the administrator",
        }.get(error.errno or 0, error.strerror or str(error))
        return f"{maddr}: {why}"
    return None


def judge_open_files(soft: int, hard: int) -> Row:
    """Whether `soft` files open at once are enough; `hard` is how many may be asked for. Pure."""
    if soft == resource.RLIM_INFINITY or soft >= LOW_OPEN_FILES:
        words = "any number" if soft == resource.RLIM_INFINITY else str(soft)
        return Row(state="ok", found=f"{words} may be open at once")
    can = hard == resource.RLIM_INFINITY or hard >= LOW_OPEN_FILES
    fix = f"run `ulimit -n {LOW_OPEN_FILES}` before `join`"
    if not can:
        fix = f"ask the administrator for {LOW_OPEN_FILES} (limits.conf, or LimitNOFILE of systemd)"
    return Row(
        state="failure" if soft < MIN_OPEN_FILES else "warning",
        found=f"{soft} may be open at once",
        fix=fix,
    )


def judge_proxies(proxies: Mapping[str, str], *, url: str, bypassed: bool) -> Row:
    """Whether calls to `url` go through a proxy, by the environment's variables. Pure."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or bypassed:
        return Row(state="ok", found="no proxy stands between")
    shown = urlsplit(proxy)
    where = f"{shown.scheme}://{shown.hostname or '?'}:{shown.port or ''}".rstrip(":")
    found = f"calls to {host} go through the proxy {where}"
    fix = f"run `export no_proxy={host}` if it should be called directly"
    # A proxy elsewhere would call itself.
    return Row(state="failure" if is_loopback(host) else "warning", found=found, fix=fix)


def judge_power(plugged: bool | None, *, percent: float | None) -> Row:
    """`plugged` None: no battery, or nothing is known of it. Pure."""
    if plugged is None:
        return Row(state="ok", found="no battery is seen")
    level = "" if percent is None else f", {percent:.0f} %"
    if plugged:
        return Row(
            state="ok",
            found=f"mains{level}; on battery training pauses unless --on-battery says otherwise",
            fix="asleep it computes nothing: `systemd-inhibit --what=idle hdee-worker join ...` "
            "(macOS: `caffeinate -i`) keeps it awake",
        )
    return Row(
        state="warning",
        found=f"on battery{level}: training waits for mains",
        fix="plug it in, or say --on-battery to `join`",
    )
