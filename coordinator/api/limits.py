"""How often one worker may call: the generic cell rate algorithm. Pure.

A worker's whole state is one time, `allowed_at`: how far ahead of its even pace it has called. It
stands in the ledger and is written with the call itself, so that all api processes agree, and a
call whose limit cannot be read is not answered.
"""

import math
from dataclasses import dataclass

CALLS_A_HEARTBEAT = 10
"""Calls at an even pace in one heartbeat interval, for each lease held; an honest worker makes one
or two, and some for each checkpoint that is on its way."""

BURST_CALLS = 100
"""Calls that a worker which was silent for long may make at once: joining, or many uploads."""


@dataclass(frozen=True)
class TooFast:
    """A call too many; the next one is answered after `retry_after_seconds`."""

    retry_after_seconds: float


def admit(
    allowed_at: float, *, now: float, heartbeat_seconds: float, num_leases: int = 1
) -> float | TooFast:
    """The caller's next `allowed_at`, or how long it must wait. A refused call costs nothing.

    With several leases the pace is that of as many workers.
    """
    several = max(1, num_leases)
    pace = heartbeat_seconds / (CALLS_A_HEARTBEAT * several)
    return meter(allowed_at, now=now, pace_seconds=pace, burst=BURST_CALLS * several)


def meter(allowed_at: float, *, now: float, pace_seconds: float, burst: int) -> float | TooFast:
    """The same for a call every `pace_seconds`, and `burst` at once after a long silence."""
    start = max(allowed_at, now)
    ahead = start + pace_seconds - now - burst * pace_seconds
    # A clock that jumped back must not silence anybody for longer than a burst is long.
    if ahead > burst * pace_seconds:
        return now + pace_seconds
    return TooFast(ahead) if ahead > 1e-9 else start + pace_seconds


def calls_left(allowed_at: float, *, now: float, heartbeat_seconds: float) -> int:
    """How many calls would be answered if they all came now."""
    pace = heartbeat_seconds / CALLS_A_HEARTBEAT
    ahead = max(0.0, allowed_at - now)
    if ahead + pace > 2 * BURST_CALLS * pace:
        return BURST_CALLS
    return max(0, math.floor(BURST_CALLS - ahead / pace + 1e-9))
