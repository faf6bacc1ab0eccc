"""The measuring child: `python -m worker.calibrate --device D --threads N` prints one JSON line.

It trains a small model for about two seconds with the trainer's own code, so that the figure is
that of real steps, forward and backward, and says what the device is. Another shape may run some
20 % faster or slower.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from protocol.capability import Device
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from shared import model as models
from shared.shards import BOS_ID, Batches, Shard, write_shard
from shared.sizing import step_flops
from worker.trainer.checkpoint import TrainerState
from worker.trainer.loop import Stepper, Training, prepare_torch
from worker.trainer.optim import Optimizer

_SECONDS = 2.0
_WARMUP_STEPS = 2
_NO_DIGEST = "0" * 64


class UnknownDevice(ValueError):
    """This machine has no such device."""


def choose_device(name: str) -> Device:
    """The device called `name`; "auto" is the fastest kind there is. Raises UnknownDevice."""
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
    raise UnknownDevice(f"device {name!r}: this machine has {', '.join(available)}")


def measured_spec(device: Device) -> ExpertSpec:
    """What is trained to measure: kernels of the size that the device will meet."""
    small = device == "cpu"
    shape = ModelShape(
        vocab_size=4096 if small else 32_000,
        hidden_size=128 if small else 768,
        num_layers=4,
        num_heads=4 if small else 12,
        ffn_width=512 if small else 3072,
        context_length=256 if small else 1024,
    )
    train = TrainSpec(
        num_steps=1,
        schedule_steps=1,
        warmup_steps=0,
        peak_learning_rate=1e-4,
        final_learning_rate=1e-4,
        micro_batch=4,
        accumulation=1,
        sequence_length=shape.context_length,
        clip_norm=1.0,
        rng_seed=0,
        compile=False,
    )
    return ExpertSpec(
        kind="seed",
        domain="calibration",
        shape=shape,
        nested_widths=(),
        train_shard=_NO_DIGEST,
        parent=None,
        trains="all",
        train=train,
    )


def flops_per_second(device: Device, *, seconds: float) -> float:
    """FLOPs of training steps a second, measured for about `seconds` after two steps of warm-up."""
    spec = measured_spec(device)
    stepper = Stepper(_training(spec, device))
    for _ in range(_WARMUP_STEPS):
        stepper.step(0)
    steps, begin, elapsed = 0, time.monotonic(), 0.0
    while elapsed < seconds:
        stepper.step(0)
        steps, elapsed = steps + 1, time.monotonic() - begin
    return steps * step_flops(spec) / elapsed


def describe(device: Device) -> dict[str, object]:
    """Name, memory in bytes (None on a CPU: see `capability`) and bfloat16 of the device."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return {
            "device_name": torch.cuda.get_device_name(),
            "total_memory_bytes": total,
            "free_memory_bytes": free,
            "bfloat16": torch.cuda.is_bf16_supported(),
        }
    return {
        "device_name": _processor_name(),
        "total_memory_bytes": None,
        "free_memory_bytes": None,
        "bfloat16": False,
    }


def main(arguments: Sequence[str]) -> int:
    """Prints {"device", "flops_per_second", ...}, or {"error"} with exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m worker.calibrate")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except UnknownDevice as error:
        _print({"error": str(error)})
        return 1
    prepare_torch(device, options.threads)
    described = describe(device)
    speed = flops_per_second(device, seconds=_SECONDS)
    _print({"device": device, "flops_per_second": speed, **described})
    return 0


def _training(spec: ExpertSpec, device: Device) -> Training:
    length = spec.train.sequence_length * spec.train.micro_batch + 1
    tokens = np.arange(length) % (spec.shape.vocab_size - 2) + 2
    tokens[0] = BOS_ID
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        write_shard(path, [(tokens, length)], vocab_size=spec.shape.vocab_size)
        shard = Shard.read(path, vocab_size=spec.shape.vocab_size)
    model = models.build(spec.shape, rng_seed=0)
    model.to(torch.device(device)).train()  # type: ignore[arg-type]  # wraps hide self
    state = TrainerState(spec=spec.digest, step=0, loss=None, train_seconds=0.0)
    return Training(
        spec, device, None, model, Optimizer(model, spec), Batches(shard, spec.train), state
    )


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
