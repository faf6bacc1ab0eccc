"""Caps and rules as a volunteer writes them: an amount, or a share of what this machine has."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from shared.words import amount
from worker.manners.hours import BadHours, parse_hours
from worker.manners.rules import Rules
from worker.settings import MIN_DISK_BYTES, BadSetting, Cap, parse_bytes, parse_duration

MIN_IDLE_SECONDS, MAX_IDLE_SECONDS = 10.0, 86_400.0
MAX_FREE_AFTER_SECONDS = 86_400.0
MAX_NICENESS = 19


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What shares are shares of."""

    num_cores: int
    memory_bytes: int

    @classmethod
    def this(cls) -> "Machine":
        """The cores that this process may use, and the memory that is built in."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        cores = usable or os.cpu_count() or 1
        return cls(num_cores=cores, memory_bytes=int(psutil.virtual_memory().total))


def parse_share(flag: str, text: str) -> float:
    """A share in `50%`, above 0 and at most 1. Raises BadSetting that names `flag`."""
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*", text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0.0 < share <= 1.0:
        raise BadSetting(f"{flag} {text!r}: expected a share such as 50%, at most 100%")
    return share


def parse_cap(flag: str, text: str) -> Cap:
    """`700MB`, `2GB` or `50%`. Raises BadSetting that names `flag`."""
    if "%" in text:
        return Cap(share=parse_share(flag, text))
    try:
        size = parse_bytes(text)
    except BadSetting:
        size = 0
    if size < 1:
        raise BadSetting(
            f"{flag} {text!r}: expected a number and a unit, such as 700MB or 2GB, or a share such "
            "as 50%"
        )
    return Cap(num_bytes=size)


def parse_threads(text: str, machine: Machine) -> int:
    """Threads in `2` or `50%`, at least one. Raises BadSetting."""
    if "%" in text:
        return max(1, int(parse_share("--threads", text) * machine.num_cores))
    if not re.fullmatch(r"\s*-?[0-9]{1,6}\s*", text):
        raise BadSetting(f"--threads {text!r}: expected a number such as 2, or a share such as 50%")
    return int(text)


def parse_memory(text: str, machine: Machine) -> int:
    """Bytes of this machine's memory. Raises BadSetting, also for more than it has."""
    size = parse_cap("--memory", text).of(machine.memory_bytes)
    if size > machine.memory_bytes:
        raise BadSetting(
            f"--memory {text!r}: {amount(size)}, but this machine has "
            f"{amount(machine.memory_bytes)}"
        )
    return size


def parse_disk(text: str, folder: Path) -> int:
    """Bytes that blobs may occupy of the disk under `folder`. Raises BadSetting."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    total = int(psutil.disk_usage(str(existing)).total)
    size = parse_cap("--disk", text).of(total)
    if not MIN_DISK_BYTES <= size <= total:
        raise BadSetting(
            f"--disk {text!r}: expected what blobs may occupy, such as 20GB or 50%; at least "
            f"{MIN_DISK_BYTES // 10**6}MB, and at most the {amount(total)} of that disk"
        )
    return size


def parse_free_after(text: str) -> float:
    """Seconds of a pause after which memory is given back. Raises BadSetting."""
    return _span("--free-memory-after", text, least=1.0, most=MAX_FREE_AFTER_SECONDS)


def parse_niceness(value: int) -> int:
    """How far the trainer gives way on the CPU. Raises BadSetting."""
    if not 0 <= value <= MAX_NICENESS:
        raise BadSetting(f"--nice {value}: expected from 0, as others, to {MAX_NICENESS}, last")
    return value


def parse_rules(
    *,
    only_when_idle: str | None,
    hours: Sequence[str] | None,
    on_battery: bool,
    max_other_cpu: str | None,
) -> Rules:
    """What the owner allows. Raises BadSetting that names the flag."""
    idle = None
    if only_when_idle is not None:
        span = (MIN_IDLE_SECONDS, MAX_IDLE_SECONDS)
        idle = _span("--only-when-idle", only_when_idle, least=span[0], most=span[1])
    try:
        allowed = tuple(parse_hours(text) for text in hours or ())
    except BadHours as error:
        raise BadSetting(f"--{error}") from error
    share = None if max_other_cpu is None else parse_share("--max-other-cpu", max_other_cpu)
    return Rules(idle_seconds=idle, hours=allowed, on_battery=on_battery, max_other_cpu=share)


def _span(flag: str, text: str, *, least: float, most: float) -> float:
    try:
        seconds = parse_duration(text)
    except BadSetting:
        seconds = 0.0
    if not least <= seconds <= most:
        raise BadSetting(
            f"{flag} {text!r}: expected a time, a number and a unit, such as 90s, 5m or 1h30m; "
            f"from {least:.0f}s to {most / 3600:.0f}h"
        )
    return seconds
