"""How often one worker may call: the generic cell rate algorithm. Pure.

A worker's whole state is one time, `allowed_at`: how far ahead of its even pace it has called. It
stands in the ledger and is written with the call itself, so that all api processes agree, and a
call whose limit cannot be read is not answered.
"""

import math
from dataclasses import dataclass

CALLS_A_HEARTBEAT = 10
"""Calls at an even pace in one heartbeat interval; an honest worker makes one or two."""

BURST_CALLS = 100
"""Calls that a worker which was silent for long may make at once: joining, or many uploads."""


@dataclass(frozen=True)
class TooFast:
    """A call too many; the next one is answered after `retry_after_seconds`."""

    retry_after_seconds: float


def admit(allowed_at: float, *, now: float, heartbeat_seconds: float) -> float | TooFast:
    """The caller's next `allowed_at`, or how long it must wait. A refused call costs nothing."""
    pace = heartbeat_seconds / CALLS_A_HEARTBEAT
    start = max(allowed_at, now)
    ahead = start + pace - now - BURST_CALLS * pace
    # A clock that jumped back must not silence anybody for longer than a burst is long.
    if ahead > BURST_CALLS * pace:
        return now + pace
    return TooFast(ahead) if ahead > 1e-9 else start + pace


def calls_left(allowed_at: float, *, now: float, heartbeat_seconds: float) -> int:
    """How many calls would be answered if they all came now."""
    pace = heartbeat_seconds / CALLS_A_HEARTBEAT
    ahead = max(0.0, allowed_at - now)
    if ahead + pace > 2 * BURST_CALLS * pace:
        return BURST_CALLS
    return max(0, math.floor(BURST_CALLS - ahead / pace + 1e-9))
