"""The environment of a process that computes with torch, set before torch is loaded."""

import os


def compute_environment(num_threads: int) -> dict[str, str]:
    """This process's environment, for a child that computes on `num_threads` CPU threads.

    Threads that wait spin for a moment only, then give their core away: a volunteer's cores are
    shared. DECISIONS.md has the figures.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        "GOMP_SPINCOUNT": "2000",
    }
