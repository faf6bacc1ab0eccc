"""The one place that reads the wall clock. Decisions take `now` as an argument instead."""

import time


def now() -> float:
    """Seconds since 1970, by this machine's clock."""
    return time.time()  # noqa: TID251
