"""What a worker measured of its own hardware."""

from typing import Annotated, Literal

from pydantic import Field

from protocol.values import Amount, Count, Positive, Value

MIN_FLOPS_PER_SECOND = 1e6
MAX_FLOPS_PER_SECOND = 1e16
"""What one machine can plausibly measure; times reckoned from speeds in between stay finite."""

Device = Literal["cpu", "cuda", "mps"]

MAX_DEVICES = 8
"""Devices of one worker, which it numbers from 0."""

DeviceNumber = Annotated[int, Field(ge=0, lt=MAX_DEVICES)]


class Capability(Value):
    """Advertised at registration and with each request for work; the scheduler matches on it.

    `free_memory_bytes` is what training may use: on CPU the whole trainer process, on a GPU its
    memory, after the volunteer's cap. `flops_per_second` is measured with a training step, forward
    and backward, not a data-sheet figure. `available_seconds`: for how long the machine is
    expected to stay, None if nobody said.
    """

    device: Device
    device_name: Annotated[str, Field(max_length=120)]
    num_threads: Positive
    total_memory_bytes: Count
    free_memory_bytes: Count
    free_disk_bytes: Count
    flops_per_second: Annotated[
        float, Field(ge=MIN_FLOPS_PER_SECOND, le=MAX_FLOPS_PER_SECOND, allow_inf_nan=False)
    ]
    bfloat16: bool
    available_seconds: Amount | None = None
