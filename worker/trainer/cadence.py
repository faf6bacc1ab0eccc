"""How often a trainer writes a checkpoint to its own disk. Pure.

A power cut or a kill costs the training since the last one, a write costs its own time. Writing
stays below two hundredths of the time where that is compatible with the most that may be lost.
"""

WRITES_APART = 50
"""Training between two writes takes so many times as long as a write."""

MIN_SECONDS = 5.0
"""Faster writes are not repeated more often: files in quick succession wear out a disk."""

CAP_SECONDS = 120.0
"""Most training that may be lost, unless the owner of the machine wants it otherwise."""


EARLY = 0.9
"""Share of the durable cadence after which a local checkpoint is announced: the next may be far."""


def is_due(seconds: float, durable_seconds: float) -> bool:
    """Whether a local checkpoint is to be announced, `seconds` after the last one that was."""
    return seconds >= EARLY * durable_seconds


def local_seconds(write_seconds: float, cap: float = CAP_SECONDS) -> float:
    """Seconds of training after which the next local checkpoint is due.

    `write_seconds` is what writing the last one took, 0.0 before the first. At most `cap`, also
    where that makes writing take more of the time.
    """
    return min(cap, max(MIN_SECONDS, WRITES_APART * write_seconds))
