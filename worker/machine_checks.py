"""What `hdee-worker check` looks at of the machine: what it computes with, and in how much memory.

Each check is a coroutine; `worker.checks.CHECKS` names them all.
"""

import asyncio
import json
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from shared.compute import compute_environment
from shared.version import SOFTWARE_VERSION
from worker.capability import CapabilityError, host_memory
from worker.check import Row, Scene
from worker.errors import WorkerError
from worker.measuring import measure_first
from worker.preview import speed_words
from worker.screen import megabytes

LOOK_SECONDS = 120.0
MIN_MEMORY_BYTES = 400 * 10**6
LOW_MEMORY_BYTES = 10**9
"""The smallest work needs a runtime of some hundred megabytes; with less than a gigabyte, most work
is not offered."""

NVIDIA = Path("/proc/driver/nvidia/version")
COMPILERS = ("c++", "g++", "clang++")


async def python(scene: Scene) -> Row:
    """Can this Python load torch? What it told is kept for the next check."""
    versions = f"Python {platform.python_version()}, hdee {SOFTWARE_VERSION}"
    fix = "install hdee again, into a virtual environment of its own"
    try:
        scene.torch = await look_at_torch()
    except TimeoutError:
        return Row(
            state="failure",
            found=f"{versions}: loading torch takes more than {LOOK_SECONDS:.0f} s",
            fix="is the disk or the machine overloaded? Try again later",
        )
    if "error" in scene.torch:
        found = f"{versions}: torch cannot be loaded: {scene.torch['error']}"
        return Row(state="failure", found=found, fix=fix)
    return Row(state="ok", found=f"{versions}, torch {scene.torch['torch']}")


async def device(scene: Scene) -> Row:
    """Is the device there that training is to use, or a GPU that it could use? Needs `python`."""
    names = scene.settings.devices or (scene.settings.device,)
    kinds = [None if name is None else name.partition(":")[0] for name in names]
    wanted = next((kind for kind in kinds if kind not in (None, "cpu")), kinds[0])
    return judge_device(scene.torch or {}, wanted=wanted, has_nvidia=has_nvidia())


async def memory(scene: Scene) -> Row:
    """Is there memory for any work now?"""
    total, free = host_memory()
    return judge_memory(free, total, cap=scene.settings.memory_bytes)


async def speed(scene: Scene) -> Row:
    """How fast is the device that trains, at the steps that are on offer?"""
    on_offer = () if scene.info is None else scene.info.on_offer
    settings = scene.settings
    try:
        found = await asyncio.to_thread(measure_first, settings, settings.folder, on_offer=on_offer)
    except (CapabilityError, WorkerError) as error:
        return Row(
            state="failure", found=str(error), fix="leave out the flag, or mend what it says"
        )
    return Row(state="ok", found=speed_words(found.capability, found.steps))


async def compiler(_scene: Scene) -> Row:
    """Can training be compiled where a spec asks for it?"""
    return judge_compiler(
        next((found for name in COMPILERS if (found := shutil.which(name))), None),
        has_headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
    )


async def look_at_torch() -> dict[str, Any]:
    """What the child found. Raises TimeoutError."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.torch_look"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=compute_environment(1),
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), LOOK_SECONDS)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    lines = out.decode(errors="replace").splitlines()
    if child.returncode != 0 or not lines:
        tail = err.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        return {"error": f"exit code {child.returncode}: {tail[0]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def has_nvidia() -> bool:
    """Whether a driver of NVIDIA's is loaded."""
    return NVIDIA.exists() or shutil.which("nvidia-smi") is not None


def judge_device(found: dict[str, Any], *, wanted: str | None, has_nvidia: bool) -> Row:
    """What torch's answer means for training on `wanted`; None: on the best there is. Pure."""
    devices, problem = found.get("devices", []), found.get("problem", "")
    built_for = found.get("cuda_build")
    if wanted is not None and wanted not in devices:
        fix = f"leave out --device, or say one of: {', '.join(devices)}"
        reason = f" ({problem})" if problem else ""
        return Row(state="failure", found=f"no {wanted} here for torch{reason}", fix=fix)
    if has_nvidia and "cuda" not in devices and wanted is None:
        if built_for is None:
            fix = "install torch built for CUDA (pytorch.org says how); until then the CPU trains"
            return Row(state="warning", found="an NVIDIA GPU, but torch without CUDA", fix=fix)
        fix = "update NVIDIA's driver, or install torch built for an older CUDA; the CPU trains"
        found_words = f"an NVIDIA GPU, but torch for CUDA {built_for} cannot use it: {problem}"
        return Row(state="warning", found=found_words, fix=fix)
    if "cuda" in devices and wanted in (None, "cuda"):
        gpu = found["gpu"]
        free = f"{megabytes(gpu['free'])} of {megabytes(gpu['total'])} free"
        return Row(state="ok", found=f"{gpu['name']}, {free}, CUDA {built_for}")
    if "mps" in devices and wanted in (None, "mps"):
        return Row(state="ok", found="Apple's GPU (mps)")
    return Row(state="ok", found="the CPU; no GPU that torch can use")


def judge_memory(free: int, total: int, *, cap: int | None) -> Row:
    """Whether any work fits into what is free, and into the owner's cap. Pure."""
    offered = free if cap is None else min(free, cap)
    found = f"{megabytes(free)} of {megabytes(total)} free"
    if cap is not None:
        found += f", {megabytes(cap)} by --memory"
    if offered >= LOW_MEMORY_BYTES:
        return Row(state="ok", found=found)
    fix = f"close programs or raise --memory; {megabytes(LOW_MEMORY_BYTES)} lets most work fit"
    return Row(state="failure" if offered < MIN_MEMORY_BYTES else "warning", found=found, fix=fix)


def judge_compiler(path: str | None, *, has_headers: bool) -> Row:
    """Few runs ask for compiled training: without a compiler their work is not for us. Pure."""
    if path is not None and has_headers:
        return Row(state="ok", found=path)
    missing = "no C++ compiler" if path is None else "no headers of Python (Python.h)"
    fix = "install a C++ compiler and Python's development files, if the operator asks for it"
    return Row(state="warning", found=f"{missing}: training cannot be compiled", fix=fix)
