"""From what was looked at to figures, and to text. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_IDLE_SHARE = 0.03
MAX_CPU_SHARE = 0.02
MAX_MEMORY_BYTES = 450_000_000
MAX_START_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """The agent and its libp2p daemon at one moment: CPU seconds so far, resident bytes."""

    at: float
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured. Shares are of one: of the lease's time, and of one core."""

    lease_seconds: float
    train_seconds: float
    idle_share: float
    cpu_share: float
    memory_bytes: int
    start_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The figures by name, and whether each goal is reached."""
        reached = {
            "idle_share": self.idle_share < MAX_IDLE_SHARE,
            "cpu_share": self.cpu_share < MAX_CPU_SHARE,
            "memory_bytes": self.memory_bytes <= MAX_MEMORY_BYTES,
            "start_seconds": self.start_seconds < MAX_START_SECONDS,
        }
        return {**asdict(self), "reached": reached}


def figures(
    looks: Sequence[Look], *, lease_seconds: float, train_seconds: float, start_seconds: float
) -> Figures:
    """`looks` are those while one seed was trained, at least two of them."""
    first, last = looks[0], looks[-1]
    return Figures(
        lease_seconds=lease_seconds,
        train_seconds=train_seconds,
        idle_share=1 - train_seconds / lease_seconds,
        cpu_share=(last.cpu_seconds - first.cpu_seconds) / (last.at - first.at),
        memory_bytes=max(look.memory_bytes for look in looks),
        start_seconds=start_seconds,
    )


def as_text(found: Figures, *, machine: str) -> str:
    """One line a figure, with its goal."""
    reached = found.as_json()["reached"]
    idle = found.lease_seconds - found.train_seconds
    lines = (
        (
            "idle_share",
            f"not training, of {found.lease_seconds:.0f} s from acknowledgement to submission: "
            f"{idle:.1f} s, {found.idle_share:.2%} (goal: below {MAX_IDLE_SHARE:.0%})",
        ),
        (
            "cpu_share",
            f"agent and libp2p daemon while training: {found.cpu_share:.2%} of a core "
            f"(goal: below {MAX_CPU_SHARE:.0%})",
        ),
        (
            "memory_bytes",
            f"agent and libp2p daemon, most resident memory: {found.memory_bytes / 1e6:.0f} MB "
            f"(goal: at most {MAX_MEMORY_BYTES / 1e6:.0f} MB)",
        ),
        (
            "start_seconds",
            f"from the start of the command to the first step, text and weights here: "
            f"{found.start_seconds:.1f} s (goal: below {MAX_START_SECONDS:.0f} s)",
        ),
    )
    marks = [f"{'reached' if reached[name] else 'MISSED':<8} {words}" for name, words in lines]
    return "\n".join([machine, *marks])
