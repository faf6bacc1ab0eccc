"""What the volunteer decides: flags of `hdee-worker join`, checked before anything starts."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from protocol.capability import Capability
from shared.exchange.rates import SLOWEST_RATE
from shared.maddrs import MAX_PORT, NotTcp, is_name, plain_ip, tcp_address, tcp_maddr
from worker.errors import WorkerError
from worker.manners.rules import Rules
from worker.owndata.texts import OwnText
from worker.trainer.cadence import CAP_SECONDS

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
MAX_STAY_SECONDS = 366 * 86_400.0
MAX_CHECKPOINT_SECONDS = 3600.0
MIN_DISK_BYTES = 10_000_000
FREE_AFTER_SECONDS = 300.0
NICENESS = 10
LISTEN = "/ip4/0.0.0.0/tcp/0"
MAX_ADDRESSES = 4


class BadSetting(WorkerError):
    """A flag whose value makes no sense; the message says what was expected."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Cap:
    """A limit: so many bytes, or a `share` of a whole."""

    num_bytes: int = 0
    share: float | None = None

    def of(self, whole: int) -> int:
        """Bytes of a whole of so many."""
        return self.num_bytes if self.share is None else int(self.share * whole)


@dataclass(frozen=True, kw_only=True)
class JoinSettings:
    """One worker's settings. `memory_bytes` and `num_threads` are caps; None takes what is there.

    `device` is the only one that trains, None: the best there is; or `devices` are several, which
    share the caps.

    `gpu_memory` is the cap in place of `memory_bytes` where training computes on a GPU of its own.
    `listen` and `announce` are multiaddresses: where its peer listens, and what others should dial
    instead. `upload_bytes_per_second` and `download_bytes_per_second` are for blobs, all of them
    together, and `disk_bytes` is what they may occupy; None: no cap. After `stay_seconds` the
    worker leaves in good order, None: it stays until the run is finished. At most
    `checkpoint_seconds` of training are lost when the machine fails. `rules` say when training may
    run; its memory is given back after `free_after_seconds` in which it may not. To touch
    `activity_file` is activity of the owner. The trainer runs with `niceness`. `own_texts` are
    offered as domains without leaving this machine. Raises BadSetting for an address that would
    carry the token in the clear, and for settings that contradict each other.
    """

    url: str
    folder: Path
    name: str = ""
    device: str | None = None
    devices: tuple[str, ...] = ()
    num_threads: int | None = None
    memory_bytes: int | None = None
    gpu_memory: Cap | None = None
    listen: tuple[str, ...] = (LISTEN,)
    announce: tuple[str, ...] = ()
    upload_bytes_per_second: float | None = None
    download_bytes_per_second: float | None = None
    disk_bytes: int | None = None
    http_only: bool = False
    insecure: bool = False
    invite: str | None = None
    stay_seconds: float | None = None
    checkpoint_seconds: float = CAP_SECONDS
    own_texts: tuple[OwnText, ...] = ()
    rules: Rules = field(default_factory=Rules)
    activity_file: Path | None = None
    free_after_seconds: float = FREE_AFTER_SECONDS
    niceness: int = NICENESS

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSetting(
                f"url {self.url!r}: expected http://host:port or https://host, as the operator "
                "of the run gave it"
            )
        if parts.scheme == "http" and not self.insecure and not is_loopback(parts.hostname):
            raise BadSetting(
                f"url {self.url!r}: plain http would show your token to everybody on the way; "
                "use https, or --insecure on a private network"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise BadSetting(f"--threads {self.num_threads}: expected at least 1")
        if self.http_only and self.announce:
            raise BadSetting("--announce with --http-only: without libp2p nobody can dial it")
        names = self.devices or ((self.device,) if self.device is not None else ())
        kinds = {name.partition(":")[0] for name in names}
        if self.gpu_memory is not None and kinds and "cuda" not in kinds:
            raise BadSetting(
                f"--gpu-memory with --device {names[0]}: it caps the memory of a CUDA device; "
                "say --memory, or leave out --device"
            )
        if self.activity_file is not None and self.rules.idle_seconds is None:
            raise BadSetting(
                f"--activity-file {self.activity_file} without --only-when-idle: nothing would "
                "look at it; say how long you must be away, such as --only-when-idle 5m"
            )

    def training_memory(self, capability: Capability) -> int | None:
        """The cap on the memory in which training computes, in bytes; None: what is free."""
        if capability.device == "cuda" and self.gpu_memory is not None:
            return self.gpu_memory.of(capability.total_memory_bytes)
        return self.memory_bytes

    def offered(self, capability: Capability) -> Capability:
        """What is offered of what was measured."""
        cap = self.training_memory(capability)
        free = capability.free_memory_bytes
        return capability.model_copy(update={"free_memory_bytes": min(free, cap or free)})


def default_folder(url: str) -> Path:
    """Where a worker for `url` keeps its files: one folder a coordinator."""
    netloc = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(url).netloc)
    return Path.home() / ".local" / "share" / "hdee" / (netloc or "worker")


def parse_bytes(text: str) -> int:
    """`700MB`, `1.5 GB` or a plain number of bytes. Raises BadSetting."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?B?)\s*", text.upper())
    unit = match.group(2) if match else None
    if match is None or (unit not in UNITS and f"{unit}B" not in UNITS):
        raise BadSetting(f"size {text!r}: expected a number and a unit, such as 700MB or 1.5GB")
    factor = UNITS.get(str(unit), UNITS.get(f"{unit}B", 1))
    return int(float(match.group(1)) * factor)


def parse_rate(flag: str, text: str) -> float:
    """Bytes a second in `2MB` or `500 KB/s`. Raises BadSetting that names `flag`."""
    number = text.strip().removesuffix("/s")
    try:
        rate = parse_bytes(number)
    except BadSetting:
        rate = 0
    if rate < SLOWEST_RATE:
        raise BadSetting(
            f"{flag} {text!r}: expected bytes a second, a number and a unit, such as 2MB; "
            f"at least {SLOWEST_RATE / 1000:.0f}KB"
        )
    return float(rate)


def parse_announce(text: str) -> str:
    """The multiaddress of `HOST:PORT`; an IPv6 address stands in brackets. Raises BadSetting."""
    host, _, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = plain_ip(host[1:-1] if bracketed else host)
    named = ip is None and not bracketed and is_name(host)
    fits = named or (ip is not None and bracketed == (":" in host) and not ip.is_unspecified)
    if not fits or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= MAX_PORT:
        raise BadSetting(
            f"--announce {text!r}: expected HOST:PORT as others should dial it, such as "
            "203.0.113.7:4001, my.example.org:4001 or [2001:db8::7]:4001"
        )
    return tcp_maddr(host if ip is None else str(ip), int(port))


def parse_listen(text: str) -> str:
    """A multiaddress to listen at, an IP address of this machine and a TCP port. Raises BadSetting.

    Port 0 means any.
    """
    try:
        address = tcp_address(text)
    except NotTcp:
        address = None
    if address is None or address.ip is None or address.maddr != text:
        raise BadSetting(
            f"--listen {text!r}: expected a multiaddress of TCP, such as /ip4/0.0.0.0/tcp/4001 "
            "or /ip6/::/tcp/4001"
        )
    return text


def parse_addresses(
    flag: str, texts: Sequence[str] | None, parse: Callable[[str], str]
) -> tuple[str, ...]:
    """What `parse` makes of each, once. Raises BadSetting, also if there are too many."""
    found = tuple(dict.fromkeys(parse(text) for text in texts or ()))
    if len(found) > MAX_ADDRESSES:
        raise BadSetting(f"{flag}: {len(found)} addresses, expected at most {MAX_ADDRESSES}")
    return found


def parse_duration(text: str) -> float:
    """Seconds in `8h`, `90m`, `1h30m`, `2d` or `45s`. Raises BadSetting."""
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([dhms])\s*", text.lower())
    whole = re.fullmatch(r"\s*(?:[0-9]{1,9}(?:\.[0-9]{1,9})?\s*[dhms]\s*)+", text.lower())
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if whole is None or not 1.0 <= seconds <= MAX_STAY_SECONDS:
        raise BadSetting(
            f"--for {text!r}: expected how long to stay, a number and a unit, such as 8h, 90m or "
            "1h30m; from 1s to 366d"
        )
    return seconds


def parse_checkpoint_every(text: str) -> float:
    """Seconds in `30s` or `2m`. Raises BadSetting."""
    try:
        seconds = parse_duration(text)
    except BadSetting:
        seconds = 0.0
    if not 1.0 <= seconds <= MAX_CHECKPOINT_SECONDS:
        raise BadSetting(
            f"--checkpoint-every {text!r}: expected how much training a power cut may cost, a "
            "number and a unit, such as 30s or 2m; from 1s to 1h"
        )
    return seconds


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an IP address, is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
