"""How fast a device really was, from what the ledger saw of its work. Pure."""

STARTUP_SECONDS = 60.0
"""Fetching, loading and the first step of an attempt are believed to have taken no longer."""

STARTUP_SHARE = 7 / 8
"""Nor more than this share of its time: what a worker says of itself is worth a factor of 8."""


def observed_speed(*, flops: float, seconds: float, told: float) -> float:
    """FLOP/s of an attempt that did `flops` in `seconds` by our clock, from its acknowledgement on.

    The clock also counts the start, which makes a device seem slow whose work was tiny. `told` are
    the FLOP/s that the worker says it reaches while it trains: they count as far as a start of at
    most STARTUP_SECONDS and STARTUP_SHARE explains what is missing, so that they count for ever
    less as work goes on. `seconds` are above 0.
    """
    trained = max(seconds - STARTUP_SECONDS, (1.0 - STARTUP_SHARE) * seconds)
    return min(max(told, flops / seconds), flops / trained)
