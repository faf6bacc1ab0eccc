"""What this machine can do for the swarm, measured in a child process, within its owner's caps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import psutil  # type: ignore[import-untyped]

from protocol.capability import Capability, Device
from shared.compute import compute_environment

_CALIBRATION_SECONDS = 180.0
_MAX_NAME = 120
_CGROUP_FILES = {
    "/sys/fs/cgroup/memory.max": "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "/sys/fs/cgroup/memory/memory.usage_in_bytes",
}
"""A container's memory limit and use, in version 2 and version 1 of cgroups."""


class CapabilityError(ValueError):
    """A cap contradicts the machine, or measuring failed; the message says which and why."""


def probe(
    *, device: str | None, num_threads: int | None, memory_bytes: int | None, folder: Path
) -> Capability:
    """Measures this machine; takes some ten seconds.

    `device` None: the fastest kind there is. `num_threads` None: all that this process may run on.
    `memory_bytes`: what the trainer process may use, None for whatever is free. `folder` is where
    the worker keeps its files. Raises CapabilityError.
    """
    threads = _threads(num_threads)
    if device is not None and device not in get_args(Device):
        raise CapabilityError(f"device {device!r}: expected one of {', '.join(get_args(Device))}")
    answer = _calibrate(device or "auto", threads)
    total, free = _memory()
    if answer["total_memory_bytes"] is not None:
        total, free = answer["total_memory_bytes"], answer["free_memory_bytes"]
    return Capability(
        device=answer["device"],
        device_name=answer["device_name"][:_MAX_NAME],
        num_threads=threads,
        total_memory_bytes=total,
        free_memory_bytes=_capped(free, memory_bytes, total),
        free_disk_bytes=_free_disk(folder),
        flops_per_second=answer["flops_per_second"],
        bfloat16=answer["bfloat16"],
    )


def refresh(capability: Capability, *, memory_bytes: int | None, folder: Path) -> Capability:
    """The capability with the disk and memory that are free now; speed and device as measured.

    The memory of a GPU stays as probed: asking for it anew would take a process with torch. Raises
    CapabilityError as `probe` does.
    """
    free = capability.free_memory_bytes if capability.device == "cuda" else _memory()[1]
    return capability.model_copy(
        update={
            "free_memory_bytes": _capped(free, memory_bytes, capability.total_memory_bytes),
            "free_disk_bytes": _free_disk(folder),
        }
    )


def _threads(cap: int | None) -> int:
    usable = len(psutil.Process().cpu_affinity()) if psutil.LINUX else psutil.cpu_count() or 1
    if cap is None:
        return usable
    if not 1 <= cap <= usable:
        raise CapabilityError(f"num_threads {cap}: expected from 1 to the {usable} of this machine")
    return cap


def _capped(free: int, cap: int | None, total: int) -> int:
    if cap is None:
        return free
    if not 1 <= cap <= total:
        raise CapabilityError(
            f"memory_bytes {cap}: expected from 1 to the {total} bytes of this machine"
        )
    return min(free, cap)


def _memory() -> tuple[int, int]:
    """Bytes of memory in all and available, within the container's limit where there is one."""
    system = psutil.virtual_memory()
    total, available = int(system.total), int(system.available)
    for limit_file, used_file in _CGROUP_FILES.items():
        limit, used = _number(Path(limit_file)), _number(Path(used_file))
        if limit is not None and used is not None and limit < total:
            return limit, max(0, min(available, limit - used))
    return total, available


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_disk(folder: Path) -> int:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return int(psutil.disk_usage(str(existing)).free)


def _calibrate(device: str, num_threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "worker.calibrate"]
    command += ["--device", device, "--threads", str(num_threads)]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CALIBRATION_SECONDS,
            check=False,
            env=compute_environment(num_threads),
        )
    except subprocess.TimeoutExpired as error:
        raise CapabilityError(f"measuring took more than {_CALIBRATION_SECONDS:.0f} s") from error
    lines = child.stdout.splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if "error" in answer:
        raise CapabilityError(answer["error"])
    if child.returncode != 0 or not answer:
        tail = child.stderr.strip().splitlines()[-1:] or ["no output"]
        raise CapabilityError(f"measuring failed with exit code {child.returncode}: {tail[0]}")
    return answer
