"""What this machine can do for the swarm, measured in a child process, within its owner's caps."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from protocol.capability import Capability
from protocol.specs import StepShape
from shared.compute import compute_environment
from shared.training.runner import give_way
from shared.words import amount
from worker import gpus
from worker.settings import Cap

log = logging.getLogger(__name__)

_CALIBRATION_SECONDS = 180.0
_MAX_NAME = 120
_CGROUP_FILES = {
    "/sys/fs/cgroup/memory.max": "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "/sys/fs/cgroup/memory/memory.usage_in_bytes",
}
"""A container's memory limit and use, in version 2 and version 1 of cgroups."""


class CapabilityError(ValueError):
    """A cap contradicts the machine, or measuring failed; the message says which and why."""


class _NotMeasured(CapabilityError):
    """The measuring child did not come to an end."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the measuring child runs, and the steps to measure with where there are some.

    `environment` is what the child finds in its own beside this process's. `gpu_memory` is the cap
    in place of that on memory where it computes on a GPU of its own.
    """

    niceness: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    on_offer: tuple[StepShape, ...] = ()
    gpu_memory: Cap | None = None


@dataclass(frozen=True)
class Probed:
    """What was measured, and the steps that the speed was measured with, in words."""

    capability: Capability
    steps: tuple[str, ...] = ()


def probe(
    *,
    device: str | None,
    num_threads: int | None,
    memory_bytes: int | None,
    folder: Path,
    calibration: Calibration | None = None,
) -> Probed:
    """Measures this machine; takes some ten seconds, in which it gives way as training will.

    `device` None: the fastest kind there is. `num_threads` None: all that this process may run on.
    `memory_bytes`: what the trainer process may use, None for whatever is free. `folder` is where
    the worker keeps its files. A GPU that `device` names by its number is the only one that this
    process's children see from then on; where there are several devices, the environment that
    `calibration` names says instead which one the measuring child sees. Steps on offer that cannot
    be measured here are left out, whatever they are. Raises CapabilityError.
    """
    how = calibration or Calibration()
    threads = _threads(num_threads)
    only = None if device is None else _visible(device)
    os.environ.update(gpus.ORDER)
    answer = _calibrate_somehow(_flags(device, threads, memory_bytes, how), threads, how)
    if only is not None:
        os.environ[gpus.VISIBLE] = only
    total, free = host_memory()
    if answer["total_memory_bytes"] is not None:
        total, free = answer["total_memory_bytes"], answer["free_memory_bytes"]
    found = Capability(
        device=answer["device"],
        device_name=answer["device_name"][:_MAX_NAME],
        num_threads=threads,
        total_memory_bytes=total,
        free_memory_bytes=_capped(free, memory_bytes, total),
        free_disk_bytes=_free_disk(folder),
        flops_per_second=answer["flops_per_second"],
        bfloat16=answer["bfloat16"],
    )
    return Probed(found, tuple(answer["steps"]))


def refresh(
    capability: Capability,
    *,
    memory_bytes: int | None,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Capability:
    """The capability with the disk and memory that are free now; speed and device as measured.

    The memory of a GPU stays as probed where `nvidia-smi` does not tell it: asking for it anew
    would take a process with torch. Raises CapabilityError as `probe` does.
    """
    free = host_memory()[1]
    if capability.device == "cuda":
        told = gpus.free_bytes({**os.environ, **(environment or {})})
        free = capability.free_memory_bytes if told is None else told
    return capability.model_copy(
        update={
            "free_memory_bytes": _capped(free, memory_bytes, capability.total_memory_bytes),
            "free_disk_bytes": _free_disk(folder),
        }
    )


def _visible(device: str) -> str | None:
    """What makes the GPU that `device` names by its number the only one; None: it names none."""
    try:
        _, number = gpus.parse_device(device)
        return None if number is None else gpus.visible(number, os.environ)
    except gpus.NoSuchDevice as error:
        raise CapabilityError(str(error)) from error


def _threads(cap: int | None) -> int:
    usable = len(psutil.Process().cpu_affinity()) if psutil.LINUX else psutil.cpu_count() or 1
    if cap is None:
        return usable
    if not 1 <= cap <= usable:
        raise CapabilityError(f"--threads {cap}: expected from 1 to the {usable} of this machine")
    return cap


def _capped(free: int, cap: int | None, total: int) -> int:
    if cap is None:
        return free
    if not 1 <= cap <= total:
        raise CapabilityError(
            f"memory_bytes {cap}: expected from 1 byte to the {amount(total)} of this machine"
        )
    return min(free, cap)


def host_memory() -> tuple[int, int]:
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


def _flags(
    device: str | None, num_threads: int, memory_bytes: int | None, how: Calibration
) -> tuple[str, ...]:
    flags = ["--device", device or "auto", "--threads", str(num_threads)]
    if memory_bytes is not None:
        flags += ["--memory", str(memory_bytes)]
    if how.gpu_memory is not None:
        flags += ["--gpu-memory", json.dumps(asdict(how.gpu_memory))]
    return tuple(flags)


def _calibrate_somehow(flags: Sequence[str], num_threads: int, how: Calibration) -> dict[str, Any]:
    """What the child measured with the steps on offer; where it cannot, without them."""
    if how.on_offer:
        steps = json.dumps([step.model_dump(mode="json") for step in how.on_offer])
        try:
            return _calibrate([*flags, "--on-offer", steps], num_threads, how)
        except _NotMeasured as error:
            log.warning("the steps on offer cannot be measured with: %s", error)
    return _calibrate(flags, num_threads, how)


def _calibrate(flags: Sequence[str], num_threads: int, how: Calibration) -> dict[str, Any]:
    command = [sys.executable, "-m", "worker.calibrate", *flags]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**compute_environment(num_threads), **how.environment},
    ) as child:
        if how.niceness:
            give_way(child.pid, how.niceness)
        try:
            output, problems = child.communicate(timeout=_CALIBRATION_SECONDS)
        except subprocess.TimeoutExpired as error:
            words = f"measuring took more than {_CALIBRATION_SECONDS:.0f} s"
            raise _NotMeasured(words) from error
        finally:
            child.kill()
    lines = output.splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if "error" in answer:
        raise CapabilityError(answer["error"])
    if child.returncode != 0 or not answer:
        tail = problems.strip().splitlines()[-1:] or ["no output"]
        raise _NotMeasured(f"measuring failed with exit code {child.returncode}: {tail[0]}")
    return answer
