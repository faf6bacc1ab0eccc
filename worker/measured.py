"""What was measured of this machine last, kept on disk.

A worker that was killed goes on with its lease at once: measuring first would outlast the lease.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from protocol.capability import Capability
from protocol.values import Value
from shared.files import write_atomic

log = logging.getLogger(__name__)

FILE = "capability.json"
_MAX_BYTES = 16_384


class _Measured(Value):
    device: str | None
    num_threads: int | None
    capability: Capability


def remember(
    path: Path, capability: Capability, *, device: str | None, num_threads: int | None
) -> None:
    """Keeps what was measured with these flags of `join`; a full disk is no reason to stop."""
    measured = _Measured(device=device, num_threads=num_threads, capability=capability)
    try:
        write_atomic(path, measured.model_dump_json().encode())
    except OSError as error:
        log.warning("what was measured is not kept: %s", error)


def remembered(path: Path, *, device: str | None, num_threads: int | None) -> Capability | None:
    """What was measured with the same flags; None: nothing was, or it cannot be read."""
    found = _read(path)
    if found is None or (found.device, found.num_threads) != (device, num_threads):
        return None
    return found.capability


def device_in(path: Path) -> str | None:
    """The device that was measured, as `--device` names it; None: it is not known."""
    found = _read(path)
    return None if found is None else found.device or found.capability.device


def _read(path: Path) -> _Measured | None:
    try:
        with path.open("rb") as file:
            return _Measured.model_validate_json(file.read(_MAX_BYTES))
    except (OSError, ValidationError):
        return None
