"""How fast bytes may flow: token buckets, and when a flow counts as stalled or slow."""

import asyncio
import math
from dataclasses import dataclass, field

from protocol.digests import PIECE_BYTES

CHUNK_BYTES = 256 * 1024
SMALLEST_CHUNK = 4096

SLOWEST_RATE = 32 * 1024
"""Bytes a second below which no limit may be set: the other side would take us for stalled."""

BURST_SECONDS = 0.25
"""A bucket holds what flows in this time."""

STALL_SECONDS = 15.0
STALL_BYTES = 64 * 1024
"""What must arrive in every STALL_SECONDS of a flow; a source below it is left for another."""

SLOWEST_FLOW = STALL_BYTES / STALL_SECONDS
"""Bytes a second, 4.4 kB/s: the slowest link that takes part, whichever way bytes go. Who sends
sees bytes leave in lumps, as buffers on the way empty, and lets half of it pass."""


@dataclass(frozen=True)
class Level:
    """Bytes that may flow at once, at a time in seconds. Below zero: so many are promised."""

    num_bytes: float
    at: float


def reserve(level: Level, num_bytes: int, *, rate: float, now: float) -> tuple[Level, float]:
    """Take `num_bytes` from a bucket that fills at `rate` bytes a second.

    Returns its new level and how many seconds whoever took them must wait.
    """
    filled = min(rate * BURST_SECONDS, level.num_bytes + max(0.0, now - level.at) * rate)
    left = filled - num_bytes
    return Level(left, now), max(0.0, -left / rate)


def patience_seconds(num_bytes: int) -> float:
    """How long the slowest link may take for `num_bytes` and a word about them."""
    return STALL_SECONDS + num_bytes / SLOWEST_FLOW


class Bucket:
    """A limit that many streams share, first come, first served. None: there is no limit.

    Raises ValueError for a rate below SLOWEST_RATE.
    """

    def __init__(self, bytes_per_second: float | None = None) -> None:
        if bytes_per_second is not None and bytes_per_second < SLOWEST_RATE:
            raise ValueError(
                f"{bytes_per_second:.0f} bytes a second: expected at least {SLOWEST_RATE}"
            )
        self.rate = math.inf if bytes_per_second is None else bytes_per_second
        self._level = Level(0.0, 0.0)

    @property
    def chunk_bytes(self) -> int:
        """How much should be moved at a time, so that a slow flow is a steady one."""
        return max(SMALLEST_CHUNK, int(min(CHUNK_BYTES, self.rate * BURST_SECONDS)))

    @property
    def gulp_bytes(self) -> int:
        """How much may be received at a time: a whole piece where there is no limit."""
        return PIECE_BYTES if self.rate == math.inf else self.chunk_bytes

    async def take(self, num_bytes: int) -> float:
        """Return when these bytes may flow; the seconds that this took."""
        if self.rate == math.inf:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._level, wait = reserve(self._level, num_bytes, rate=self.rate, now=now)
        await asyncio.sleep(wait)
        return wait


@dataclass(frozen=True)
class Rates:
    """The limits of one process, for all its blobs together: what it sends, what it receives."""

    up: Bucket = field(default_factory=Bucket)
    down: Bucket = field(default_factory=Bucket)


class Flow:
    """Watches what one stream brings. Times are those of the caller's clock, in seconds."""

    def __init__(self, now: float) -> None:
        self._since, self._num_bytes = now, 0
        self._latest = now

    def seconds_left(self, now: float) -> float:
        """For how long the next bytes may be waited for: if none come by then, it is stalled.

        A window that has brought enough does not end a stream that still flows: what comes behind
        its end is noted, and begins the next one.
        """
        begun = self._since if self._num_bytes < STALL_BYTES else self._latest
        return max(0.0, begun + STALL_SECONDS - now)

    def excuse(self, seconds: float) -> None:
        """Time in which we did not want any bytes."""
        self._since += seconds
        self._latest += seconds

    def note(self, num_bytes: int, now: float) -> bool:
        """Count what arrived; True if the window is over and brought too little."""
        self._num_bytes += num_bytes
        self._latest = now
        if now < self._since + STALL_SECONDS:
            return False
        stalled = self._num_bytes < STALL_BYTES
        self._since, self._num_bytes = now, 0
        return stalled
