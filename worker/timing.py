"""How fast a device makes steps: those that the run has on offer, or of a fixed shape.

FLOPs are counted by `shared.sizing`, as predictions count them, so that a model's own overheads are
in the figure: small ones reach but a part of what large ones do. Not measured: what compiling would
gain, nested widths (the widest is made), and steps that take this machine very long, which are made
of fewer sequences.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from pydantic import ValidationError

from protocol.capability import MIN_FLOPS_PER_SECOND, Device
from protocol.specs import ExpertSpec, ModelShape, StepShape, TrainSpec
from shared.sizing import step_flops, training_memory_bytes
from shared.words import size_words
from worker.trainer.failures import is_out_of_memory
from worker.trainer.loop import Stepper
from worker.trainer.memory import give_back
from worker.trainer.pilot import random_training

SECONDS = 2.0
"""For how long steps are timed, all shapes together."""

LONG_STEP_SECONDS = 1.0
"""Of a step that would take longer only some sequences are made."""

_WARMUP_STEPS = 2
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Timed:
    """A speed in FLOP/s, and the steps that it was measured with, in words."""

    flops_per_second: float
    steps: tuple[str, ...]


def measure(device: Device, on_offer: Sequence[StepShape], *, memory_bytes: int) -> Timed:
    """The speed with the steps on offer that fit into the memory, else with that of a fixed shape.

    Of several the geometric mean: none is misjudged more than another. A first look with a sequence
    of the fixed shape says how long a step on offer would take, so that none takes much more than
    LONG_STEP_SECONDS. Takes some three seconds. Raises what torch raises.
    """
    fixed = spec_of(fixed_step(device))
    if on_offer:
        one = fixed.train.model_copy(update={"micro_batch": 1})
        rough = flops_per_second(fixed.model_copy(update={"train": one}), device, seconds=0.0)
        found = [
            spec
            for step in on_offer
            if (spec := measurable(step, device, memory_bytes=memory_bytes)) is not None
            if (spec := shortened(spec, most_flops=rough * LONG_STEP_SECONDS)) is not None
        ]
        timed = [(spec, _tried(spec, device, seconds=SECONDS / len(found))) for spec in found]
        speeds = {in_words(spec): speed for spec, speed in timed if speed is not None}
        if speeds:
            return Timed(geometric_mean(speeds.values()), tuple(speeds))
    return Timed(flops_per_second(fixed, device, seconds=SECONDS), (in_words(fixed),))


def fixed_step(device: Device) -> StepShape:
    """What is measured where nothing is on offer: kernels of a size that the device may meet."""
    small = device == "cpu"
    shape = ModelShape(
        vocab_size=4096 if small else 32_000,
        hidden_size=128 if small else 768,
        num_layers=4,
        num_heads=4 if small else 12,
        ffn_width=512 if small else 3072,
        context_length=256 if small else 1024,
    )
    return StepShape(
        shape=shape,
        trains="all",
        micro_batch=4,
        accumulation=1,
        sequence_length=shape.context_length,
    )


def spec_of(step: StepShape) -> ExpertSpec:
    """A training that makes such steps. Raises ValidationError for what no training makes."""
    train = TrainSpec(
        num_steps=1,
        schedule_steps=1,
        warmup_steps=0,
        peak_learning_rate=1e-4,
        final_learning_rate=1e-4,
        micro_batch=step.micro_batch,
        accumulation=step.accumulation,
        sequence_length=step.sequence_length,
        clip_norm=1.0,
        rng_seed=0,
        compile=False,
    )
    return ExpertSpec(
        kind="expert",
        domain="calibration",
        shape=step.shape,
        nested_widths=(),
        train_shard=_NO_DIGEST,
        parent=_NO_DIGEST,
        trains=step.trains,
        train=train,
        lora=step.lora,
    )


def measurable(step: StepShape, device: Device, *, memory_bytes: int) -> ExpertSpec | None:
    """The training that makes such steps; None: it needs more memory, or there is none such."""
    try:
        spec = spec_of(step)
    except ValidationError:
        return None
    return spec if training_memory_bytes(spec, device=device) <= memory_bytes else None


def shortened(spec: ExpertSpec, *, most_flops: float) -> ExpertSpec | None:
    """The spec with as many of a step's sequences as `most_flops` allow; None: not even one."""
    train = spec.train
    num_sequences = train.micro_batch * train.accumulation
    allowed = min(num_sequences, int(most_flops / (step_flops(spec) / num_sequences)))
    if allowed < 1:
        return None
    micro_batch = min(train.micro_batch, allowed)
    fewer = {"micro_batch": micro_batch, "accumulation": allowed // micro_batch}
    return spec.model_copy(update={"train": train.model_copy(update=fewer)})


def flops_per_second(spec: ExpertSpec, device: Device, *, seconds: float) -> float:
    """FLOPs of training steps a second, measured for about `seconds` after one or two to warm up.

    One step at least is timed. Never below what a worker may advertise.
    """
    stepper = Stepper(random_training(spec, device))
    begin = time.monotonic()
    for _ in range(_WARMUP_STEPS):
        stepper.step(0)
        if time.monotonic() - begin > LONG_STEP_SECONDS:
            break
    steps, begin, elapsed = 0, time.monotonic(), 0.0
    while steps == 0 or elapsed < seconds:
        stepper.step(0)
        steps, elapsed = steps + 1, time.monotonic() - begin
    return max(MIN_FLOPS_PER_SECOND, steps * step_flops(spec) / max(elapsed, 1e-9))


def in_words(spec: ExpertSpec) -> str:
    """What a step computes, for people: `4 layers of 128 (FFN 512) on 4 x 256 tokens`."""
    shape, train = spec.shape, spec.train
    return (
        f"{shape.num_layers} layers of {shape.hidden_size} ({size_words(shape, spec.lora)}) on "
        f"{train.micro_batch * train.accumulation} x {train.sequence_length} tokens"
    )


def _tried(spec: ExpertSpec, device: Device, *, seconds: float) -> float | None:
    """Its speed; None: it did not fit into memory after all."""
    speed = None
    try:
        speed = flops_per_second(spec, device, seconds=seconds)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    give_back(device)
    return speed
