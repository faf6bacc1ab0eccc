"""What the scheduler is told and what it answers. Plain values; times are seconds, absolute."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.seats import seat_of
from protocol.capability import Capability, Device

DEVICES: tuple[Device, ...] = ("cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One assignment. FLOPs are what is left of it from its newest durable checkpoint on.

    Memory is in bytes for each device, disk in bytes. `excluded` workers never get it. `ran_out`
    maps a seat to the free memory in bytes with which it ran out of it on this work. Nobody gets
    it before `not_before`. `inputs` are the digests of the blobs that it starts from. Where it has
    an `owner`, that worker alone has the text `shard`, and may take it while it says that it does.
    Work of one `curve` differs in `num_steps` alone: the longer can go on where the shorter ended.
    `memory_factors` are what measurements made of the estimates of memory, 1.0 where one is absent.
    """

    assignment: str
    words: str
    flops: float
    memory_bytes: Mapping[Device, int]
    disk_bytes: int
    needs_trust: bool = False
    excluded: frozenset[str] = frozenset()
    ran_out: Mapping[str, int] | None = None
    not_before: float = 0.0
    inputs: frozenset[str] = frozenset()
    owner: str | None = None
    shard: str = ""
    curve: str = ""
    num_steps: int = 0
    memory_factors: Mapping[Device, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.flops < math.inf:
            raise ValueError(f"flops {self.flops} of {self.assignment}: expected 0 or more, finite")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A worker, as one of its devices, that works or waits for work.

    `speed` is what is expected of it in FLOP/s: calibrated, corrected by what it really did. An
    idle worker is expected at `busy_until`, and ever later once that has passed. `proven`: some of
    its work was accepted; what others claim counts up to a limit only. `cached` are the digests of
    blobs that it holds. It expects to stay until `available_until`; None: it did not say. Each pair
    in `ran_out`: it ran out of memory on work of so many bytes, with so many free.
    """

    worker: str
    capability: Capability
    speed: float
    busy_until: float
    trusted: bool = True
    proven: bool = True
    cached: frozenset[str] = frozenset()
    available_until: float | None = None
    ran_out: frozenset[tuple[int, int]] = frozenset()
    device_number: int = 0

    @property
    def seat(self) -> str:
        """The device, by a name that no other has."""
        return seat_of(self.worker, self.device_number)

    def __post_init__(self) -> None:
        if not 0.0 < self.speed < math.inf:
            raise ValueError(f"speed {self.speed} of {self.worker}: expected above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class Running:
    """Work in progress: an offered or running assignment and its holder.

    `work.flops` are left from the newest durable checkpoint on: what a backup would have to do.
    `finish` is predicted from the holder's last progress. Without new progress it counts as later
    with every second after `stalls_at`. A backup's own entry names the original in `backup_of`.
    `backed_up`: it has a backup, also one that was handed in and is not judged yet.
    """

    work: Work
    worker: str
    finish: float
    stalls_at: float = math.inf
    backed_up: bool = False
    backup_of: str | None = None
    device_number: int = 0

    @property
    def seat(self) -> str:
        """The device of the worker that does it."""
        return seat_of(self.worker, self.device_number)


@dataclass(frozen=True)
class Choice:
    """The open assignment for the asking worker, and why."""

    assignment: str
    reason: str


@dataclass(frozen=True)
class Backup:
    """The running assignment `of` is to be done a second time, by the asking worker.

    `replaces` is the backup that it has already and that is too slow as well: to be cancelled.
    """

    of: str
    reason: str
    replaces: str | None = None


@dataclass(frozen=True)
class NoWork:
    """Why the asking worker gets nothing now; `waits`: because others would end it sooner."""

    reason: str
    waits: bool = False


@dataclass(frozen=True)
class Obstacle:
    """Why a worker cannot take some work.

    `lack` is the missing share of what it has, 0 or more. `needed` and `held` are numbers of
    `unit`; None where the requirement is not a quantity.
    """

    requirement: str
    words: str
    lack: float
    needed: float | None = None
    held: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the scheduler thinks of one open assignment for one worker.

    `obstacle`: the first requirement that it fails. Otherwise `finish` is when it would be done and
    `target` the time by which everything should be; past it, `sooner` names the worker that is
    expected to finish it before at `sooner_finish`, which may be the same one with another device.
    `given`: this is what it would get now.
    """

    assignment: str
    words: str
    obstacle: Obstacle | None
    finish: float | None = None
    target: float | None = None
    sooner: str | None = None
    sooner_finish: float | None = None
    given: bool = False
