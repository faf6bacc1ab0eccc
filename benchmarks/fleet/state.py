"""What a simulated run consists of: attempts, assignments, volunteers, and the tally."""

import math
from dataclasses import dataclass

from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.pieces import Piece
from coordinator.lifecycle import Assignment


@dataclass(frozen=True)
class Trouble:
    """Share of attempts that stall, and the mean length of a stall in seconds (exponential)."""

    stall_share: float = 0.02
    stall_seconds: float = 1200.0


@dataclass(eq=False, slots=True)
class Attempt:
    """One try. FLOPs `base` were done before; training begins at `starts_at`."""

    row: "Row"
    machine: Machine
    fencing: int
    offered_at: float
    base: float
    starts_at: float
    stall: tuple[float, float] = (math.inf, 0.0)
    durable: float = 0.0
    durable_at: float = 0.0
    predicted: float = 0.0
    measured: bool = False
    ended: bool = False
    submitted: bool = False
    stands_still: bool = False

    def done(self, now: float) -> float:
        """FLOPs of the piece that exist at a time."""
        begins, length = self.stall
        stood = min(max(0.0, now - begins), length) if begins < math.inf else 0.0
        trained = self.machine.real_speed * max(0.0, now - self.starts_at - stood)
        return min(self.row.piece.type.flops, self.base + trained)

    def ends_at(self) -> float:
        """When the last step is done, with the stall if it comes before that."""
        end = self.starts_at + (self.row.piece.type.flops - self.base) / self.machine.real_speed
        return end + self.stall[1] if self.stall[0] < end else end


@dataclass(eq=False, slots=True)
class Row:
    """An assignment: where it stands, and its running backup or the original of a backup."""

    standing: Assignment
    piece: Piece
    durable: float = 0.0
    attempt: Attempt | None = None
    twin: "Row | None" = None
    is_backup: bool = False


@dataclass(eq=False, slots=True)
class Volunteer:
    """What the coordinator knows of a machine, and what the machine is at."""

    machine: Machine
    speed: float
    proven: bool = False
    gone: bool = False
    waits_since: float | None = None
    retries: int = 0
    uncollected: int = 0
    blocked: bool = False
    attempt: Attempt | None = None


@dataclass
class Tally:
    """FLOPs and counts of a simulated run; `makespan` in seconds."""

    makespan: float = math.inf
    accepted: int = 0
    trained: float = 0.0
    lost: float = 0.0
    twice: float = 0.0
    leases: int = 0
    expired: int = 0
    backups: int = 0
    events: int = 0
    latest_end: float = 0.0
    fetched_bytes: float = 0.0
