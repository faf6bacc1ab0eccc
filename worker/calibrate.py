"""The measuring child: `python -m worker.calibrate --device D --threads N` prints one JSON line.

It trains small models for some seconds with the trainer's own code, so that the figure is that of
real steps, forward and backward, and says what the device is. `--on-offer` are the steps to measure
with, a JSON list of StepShape; `--memory` is the most bytes that they may take, and `--gpu-memory`,
a Cap as JSON, stands in its place on a GPU that has memory of its own.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from protocol.capability import Device
from protocol.specs import StepShape
from worker.capability import host_memory
from worker.settings import Cap
from worker.timing import measure
from worker.trainer.loop import prepare_torch

_STEPS = TypeAdapter(tuple[StepShape, ...])


class UnknownDevice(ValueError):
    """This machine has no such device."""


def choose_device(name: str) -> Device:
    """The device called `name`; "auto" is the fastest kind there is. Raises UnknownDevice.

    A GPU that is named by its number, such as cuda:1, is the one that torch uses from then on.
    """
    available: list[Device] = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return available[0]
    for device in available:
        if device == name:
            return device
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if name in gpus:
        torch.cuda.set_device(name)
        return "cuda"
    shown = [f"{gpu} ({torch.cuda.get_device_name(gpu)})" for gpu in gpus]
    there = ", ".join([*shown, *(device for device in available if device != "cuda")])
    raise UnknownDevice(f"device {name!r}: this machine has {there}; leave out --device, or say it")


def describe(device: Device) -> dict[str, Any]:
    """Name, memory in bytes (None on a CPU: see `capability`) and bfloat16 of the device."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return {
            "device_name": torch.cuda.get_device_name(),
            "total_memory_bytes": total,
            "free_memory_bytes": free,
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return {
        "device_name": _processor_name(),
        "total_memory_bytes": None,
        "free_memory_bytes": None,
        "bfloat16": False,
    }


def main(arguments: Sequence[str]) -> int:
    """Prints {"device", "flops_per_second", "steps", ...}, or {"error"} with exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m worker.calibrate")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory", type=int, default=sys.maxsize)
    parser.add_argument("--gpu-memory", default="null")
    parser.add_argument("--on-offer", default="[]")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except UnknownDevice as error:
        _print({"error": str(error)})
        return 1
    prepare_torch(device, options.threads)
    described = describe(device)
    memory_bytes = _room(described, cap=options.memory, gpu_memory=json.loads(options.gpu_memory))
    timed = measure(device, _STEPS.validate_json(options.on_offer), memory_bytes=memory_bytes)
    _print({"device": device, **asdict(timed), **described})
    return 0


def _room(described: dict[str, Any], *, cap: int, gpu_memory: dict[str, Any] | None) -> int:
    """Bytes of memory that steps may take while they are measured."""
    if described["free_memory_bytes"] is None:
        return min(cap, host_memory()[1])
    if gpu_memory is not None:
        cap = Cap(**gpu_memory).of(described["total_memory_bytes"])
    return min(cap, described["free_memory_bytes"])


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _print(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
