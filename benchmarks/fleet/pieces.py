"""The work: experts of real shapes, with FLOPs, memory and bytes from `shared.sizing`."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.capability import Device
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from shared.sizing import (
    checkpoint_bytes,
    disk_bytes,
    expert_bytes,
    train_flops,
    training_memory_bytes,
)

SHARD_BYTES = 60_000_000
NUM_DOMAINS = 500
DEVICES: tuple[Device, ...] = ("cpu", "cuda", "mps")

_FAMILIES = (
    (22, 512, 16, 8, (1024, 1536, 2048)),
    (60, 576, 30, 9, (1024, 1536, 2048)),
    (14, 960, 32, 15, (1920, 2560, 3200)),
    (4, 1280, 32, 20, (1536, 2048, 2560)),
)
"""Share in %, hidden size, layers, heads, FFN widths: 0.07 to 0.6 billion parameters.

The shares are such that no size of memory is the bottleneck by far, as a plan for the volunteers at
hand would be: with some more large ones the few large cards would be all that counts.
"""

_STEPS = (300, 400, 500)


@dataclass(frozen=True, eq=False)
class Type:
    """What all experts of one shape and length have in common. Sizes in bytes."""

    words: str
    flops: float
    memory_bytes: Mapping[Device, int]
    disk_bytes: int
    expert_bytes: int
    checkpoint_bytes: int
    parent: str


@dataclass(frozen=True)
class Piece:
    """One spec of the run: its type, and the shard that it trains on."""

    name: str
    type: Type
    shard: str


def make_types() -> list[tuple[int, Type]]:
    """Every type of piece, with its weight."""
    return [
        (share, _type(_shape(hidden, layers, heads, width), steps))
        for share, hidden, layers, heads, widths in _FAMILIES
        for width in widths
        for steps in _STEPS
    ]


def draw_pieces(*, specs: int, random: random.Random) -> list[Piece]:
    """`specs` pieces of random types and domains."""
    types = make_types()
    chosen = random.choices(
        [one for _, one in types], weights=[share for share, _ in types], k=specs
    )
    return [
        Piece(f"a{number:06}", one, f"shard-{random.randrange(NUM_DOMAINS)}")
        for number, one in enumerate(chosen)
    ]


def _shape(hidden: int, layers: int, heads: int, width: int) -> ModelShape:
    return ModelShape(
        vocab_size=32_000,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        ffn_width=width,
        context_length=1024,
    )


def _type(shape: ModelShape, steps: int) -> Type:
    spec = ExpertSpec(
        kind="expert",
        domain="general",
        shape=shape,
        nested_widths=(),
        train_shard=hashlib.sha256(b"shard").hexdigest(),
        parent=hashlib.sha256(b"parent").hexdigest(),
        trains="all",
        train=TrainSpec(
            num_steps=steps,
            schedule_steps=600,
            warmup_steps=10,
            peak_learning_rate=1e-3,
            final_learning_rate=1e-4,
            micro_batch=1,
            accumulation=256,
            sequence_length=1024,
            clip_norm=1.0,
            rng_seed=0,
            compile=False,
        ),
    )
    return Type(
        words=f"{shape.hidden_size}x{shape.ffn_width} expert, {steps} steps",
        flops=train_flops(spec),
        memory_bytes={device: training_memory_bytes(spec, device=device) for device in DEVICES},
        disk_bytes=disk_bytes(spec),
        expert_bytes=expert_bytes(spec),
        checkpoint_bytes=checkpoint_bytes(spec),
        parent=f"parent-{shape.hidden_size}-{shape.ffn_width}",
    )
