"""Backoff as pure functions: when to try again is decided from numbers that the caller passes."""

MIN_TOLD_SECONDS = 0.1
MAX_TOLD_SECONDS = 300.0
"""However long the other side asked us to wait, it is asked again after this."""


def backoff_seconds(attempt: int, *, base: float, cap: float, random: float) -> float:
    """Wait before try number `attempt` (0 is the first repetition), in seconds.

    Doubles from `base` to `cap`, then takes a `random` point (0 to 1) in its upper half, so that
    workers which lost the same coordinator do not come back in step.

    Raises ValueError for a negative attempt or a `random` outside 0 to 1.
    """
    if attempt < 0 or not 0.0 <= random <= 1.0:
        raise ValueError(f"attempt {attempt}, random {random}: expected >= 0 and 0 to 1")
    full = min(cap, base * 2.0 ** min(attempt, 30))
    return full * (0.5 + 0.5 * random)


def told_seconds(told: float, *, random: float) -> float:
    """Wait before the next try where the other side `told` how long, in seconds.

    Never sooner, and up to a quarter later, by a `random` number (0 to 1), so that those who were
    sent away together do not come back together.
    """
    return min(max(told, MIN_TOLD_SECONDS), MAX_TOLD_SECONDS) * (1.0 + 0.25 * random)
