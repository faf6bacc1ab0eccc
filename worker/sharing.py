"""Several devices of one worker: their names, and what each may use of what all may use together.

Threads and memory of this machine are divided evenly; the memory of a GPU is its own. The disk is
divided among those that may take work.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil  # type: ignore[import-untyped]

from protocol.capability import MAX_DEVICES, Capability
from worker import gpus
from worker.capability import CapabilityError, host_memory
from worker.settings import BadSetting, JoinSettings

ALL = "all"
TRAINER = "worker.trainer"


def parse_devices(texts: Sequence[str] | None) -> tuple[str, ...]:
    """The devices of `--device`, given once or several times; `all` is every GPU. None: empty.

    Raises BadSetting.
    """
    names = tuple(texts or ())
    if ALL in names:
        if len(names) > 1:
            raise BadSetting("--device all with another --device: all is every GPU of this machine")
        names = gpus.every(os.environ)
        if not names:
            raise BadSetting(
                "--device all: no GPU is seen here by nvidia-smi; say --device cpu, or leave it out"
            )
    if len(names) < 2:
        return names
    if len(names) > MAX_DEVICES:
        raise BadSetting(f"--device: {len(names)} devices, expected at most {MAX_DEVICES}")
    for name in names:
        _check(name, names)
    return names


def _check(name: str, names: Sequence[str]) -> None:
    """Raises BadSetting for one of several devices that cannot be told from the others."""
    try:
        kind, number = gpus.parse_device(name)
    except gpus.NoSuchDevice as error:
        raise BadSetting(f"--device: {error}") from error
    if kind == "cuda" and number is None:
        raise BadSetting(
            "--device cuda beside another --device: say which GPU, by its number in nvidia-smi, "
            "such as cuda:0"
        )
    if kind != "cpu" and names.count(name) > 1:
        raise BadSetting(f"--device {name}: given twice, and there is one of it")


def parts_of(settings: JoinSettings, *, num_cores: int) -> tuple[JoinSettings, ...]:
    """The settings of each device: those of all for the only one. Raises BadSetting. Pure.

    `num_cores` are the threads that this process may use at most.
    """
    names = settings.devices
    if not names:
        return (settings,)
    threads = settings.num_threads or num_cores
    if names.count("cpu") > threads:
        raise BadSetting(
            f"--device cpu {names.count('cpu')} times: each takes a thread at least, and there are "
            f"{threads}; say it less often, or raise --threads"
        )
    each, rest = divmod(threads, len(names))
    memory = settings.memory_bytes
    return tuple(
        replace(
            settings,
            device=name,
            devices=(),
            num_threads=max(1, each + (place < rest)),
            memory_bytes=memory if memory is None else memory // max(1, names.count("cpu")),
            gpu_memory=settings.gpu_memory if name.startswith("cuda") else None,
        )
        for place, name in enumerate(names)
    )


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """What each device is called on the screen: `cuda:0`, or `cpu 1` and `cpu 2`. Pure."""
    return tuple(
        name if names.count(name) == 1 else f"{name} {names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    )


def environment_of(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What a child that computes on this one of several devices finds in its environment.

    Raises CapabilityError for a GPU that is not visible here.
    """
    try:
        _, number = gpus.parse_device(name)
        return {} if number is None else {**gpus.ORDER, gpus.VISIBLE: gpus.visible(number, environ)}
    except gpus.NoSuchDevice as error:
        raise CapabilityError(str(error)) from error


def its_memory(capability: Capability, *, cap: int | None, num_cpu: int) -> Capability:
    """With this device's part of the host's memory, of which `num_cpu` devices compute in it.

    What trainers of this process hold counts as free: it is what their devices have of it.
    """
    if capability.device != "cpu" or num_cpu < 2:
        return capability
    free = (host_memory()[1] + _held_by_trainers()) // num_cpu
    return capability.model_copy(
        update={"free_memory_bytes": free if cap is None else min(free, cap)}
    )


def its_disk(
    capability: Capability, *, free_bytes: int, owed_bytes: int, num_idle: int
) -> Capability:
    """With this device's part of the disk, of which `free_bytes` are free for all of them. Pure.

    Work of other devices has yet to write `owed_bytes` of them at most; the rest is divided among
    the `num_idle` devices without work, this one included, as all of them may take some at once.
    """
    part = max(0, free_bytes - owed_bytes) // num_idle
    return capability.model_copy(update={"free_disk_bytes": min(capability.free_disk_bytes, part)})


def _held_by_trainers() -> int:
    held = 0
    for child in psutil.Process().children():
        try:
            if TRAINER in child.cmdline():
                held += int(child.memory_info().rss)
        except psutil.Error:
            continue
    return held
