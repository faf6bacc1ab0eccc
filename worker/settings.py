"""What the volunteer decides: flags of `hdee-worker join`, checked before anything starts."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.errors import WorkerError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
MAX_STAY_SECONDS = 366 * 86_400.0


class BadSetting(WorkerError):
    """A flag whose value makes no sense; the message says what was expected."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class JoinSettings:
    """One worker's settings. `memory_bytes` and `num_threads` are caps; None takes what is there.

    After `stay_seconds` the worker leaves in good order, None: it stays until the run is finished.
    Raises BadSetting for an address that would carry the token in the clear.
    """

    url: str
    folder: Path
    name: str = ""
    device: str | None = None
    num_threads: int | None = None
    memory_bytes: int | None = None
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    http_only: bool = False
    insecure: bool = False
    invite: str | None = None
    stay_seconds: float | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSetting(
                f"url {self.url!r}: expected http://host:port or https://host, as the operator "
                "of the run gave it"
            )
        if parts.scheme == "http" and not self.insecure and not _is_loopback(parts.hostname):
            raise BadSetting(
                f"url {self.url!r}: plain http would show your token to everybody on the way; "
                "use https, or --insecure on a private network"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise BadSetting(f"--threads {self.num_threads}: expected at least 1")


def default_folder(url: str) -> Path:
    """Where a worker for `url` keeps its files: one folder a coordinator."""
    netloc = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(url).netloc)
    return Path.home() / ".local" / "share" / "hdee" / (netloc or "worker")


def parse_bytes(text: str) -> int:
    """`700MB`, `1.5 GB` or a plain number of bytes. Raises BadSetting."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B?)\s*", text.upper())
    unit = match.group(2) if match else None
    if match is None or (unit not in UNITS and f"{unit}B" not in UNITS):
        raise BadSetting(f"size {text!r}: expected a number and a unit, such as 700MB or 1.5GB")
    factor = UNITS.get(str(unit), UNITS.get(f"{unit}B", 1))
    return int(float(match.group(1)) * factor)


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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
