"""The volunteers' machines: which hardware, how much of it, how fast, from when to when.

Speeds are rough figures of what small models reach in mixed precision (a quarter to a third of the
vendor's dense fp16 tensor figure for NVIDIA cards, which is what nanoGPT-like training of models
below 1B parameters reports; less for cards without tensor cores; a tenth of an A100 for the large
Apple chips; AVX2/AVX-512 fp32 for CPUs). Shares are a rounded guess after the Steam hardware survey
of 2024-2025 (the 60 class leads, then the 70s; few 80s and 90s), tilted towards people who lend
their machine, plus a few workstation and data-centre cards, Macs and plain CPUs. None of it was
measured by us: what matters is the spread, 1 to 275 in speed and 1 to 9 in memory.
"""

import math
import random
from dataclasses import dataclass, field

from protocol.capability import Capability, Device

GIGA = 1_000_000_000


@dataclass(frozen=True)
class Model:
    """Memory that training could use in GB, training speed in TFLOP/s, share of the fleet in %."""

    name: str
    device: Device
    gigabytes: float
    teraflops: float
    share: float


MIX = (
    Model("GTX 1660", "cuda", 6, 3.0, 6),
    Model("RTX 2060", "cuda", 6, 7.0, 7),
    Model("RTX 3060", "cuda", 12, 10.0, 15),
    Model("RTX 4060", "cuda", 8, 11.0, 12),
    Model("RTX 3070", "cuda", 8, 14.0, 8),
    Model("RTX 4070", "cuda", 12, 20.0, 11),
    Model("RTX 3080", "cuda", 10, 21.0, 8),
    Model("RTX 3090", "cuda", 24, 25.0, 7),
    Model("RTX 4080", "cuda", 16, 34.0, 5),
    Model("RTX 4090", "cuda", 24, 55.0, 7),
    Model("RTX A4000", "cuda", 16, 14.0, 1),
    Model("RTX A6000", "cuda", 48, 40.0, 1),
    Model("A100 40GB", "cuda", 40, 110.0, 1),
    Model("Apple M2", "mps", 10, 2.0, 4),
    Model("Apple M2 Max", "mps", 24, 6.0, 2),
    Model("8-core CPU", "cpu", 12, 0.4, 3),
    Model("16-core CPU", "cpu", 48, 1.0, 2),
)


@dataclass(eq=False, slots=True)
class Machine:
    """One volunteer's machine. Speeds in FLOP/s, times in seconds of the simulation.

    `real_speed` is what its training reaches, `capability.flops_per_second` what it measured when
    it joined. `bandwidth` is in bytes a second each way. `polite`: it releases its lease when it
    goes; the others just fall silent.
    """

    worker: str
    model: str
    capability: Capability
    real_speed: float
    bandwidth: float
    joins_at: float
    leaves_at: float = math.inf
    polite: bool = False
    cached: set[str] = field(default_factory=set)


def draw_fleet(
    *, workers: int, churn: float, span_seconds: float, stragglers: float, random: random.Random
) -> list[Machine]:
    """`workers` machines that are there at 0, and those that join later.

    A share `churn` leaves for good at times uniform over `span_seconds`, and as many join. A share
    `stragglers` reaches but 30 to 80 % of its calibrated speed; the others 90 to 105 %.
    """
    leaving = set(random.sample(range(workers), round(churn * workers)))
    fleet = []
    for number in range(workers + len(leaving)):
        machine = _draw(number, stragglers, random)
        if number in leaving:
            machine.leaves_at = random.uniform(0.0, span_seconds)
            machine.polite = random.random() < 0.5
        if number >= workers:
            machine.joins_at = random.uniform(0.0, span_seconds)
        fleet.append(machine)
    return fleet


def _draw(number: int, stragglers: float, random: random.Random) -> Machine:
    (model,) = random.choices(MIX, weights=[model.share for model in MIX])
    calibrated = model.teraflops * 1e12 * random.uniform(0.8, 1.15)
    slow = random.random() < stragglers
    memory = int(model.gigabytes * GIGA * random.uniform(0.75, 0.97))
    return Machine(
        worker=f"w{number:06}",
        model=model.name,
        capability=Capability(
            device=model.device,
            device_name=model.name,
            num_threads=8,
            total_memory_bytes=int(model.gigabytes * GIGA),
            free_memory_bytes=memory,
            free_disk_bytes=int(10 ** random.uniform(1.5, 2.7) * GIGA),
            flops_per_second=calibrated,
            bfloat16=model.device == "cuda",
        ),
        real_speed=calibrated * (random.uniform(0.3, 0.8) if slow else random.uniform(0.9, 1.05)),
        bandwidth=10 ** random.uniform(6.4, 7.7),
        joins_at=0.0,
    )
