"""The environment of a process that computes with torch, set before torch is loaded."""

import os


def compute_environment(num_threads: int) -> dict[str, str]:
    """This process's environment, for a child that computes on `num_threads` CPU threads.

    Threads that wait spin for a moment only, then give their core away. With the default, where
    they spin on, two threads on two cores that other processes kept busy trained at 266 tokens/s;
    so, at 3,458. On idle cores both made 5,400 to 7,500.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        "GOMP_SPINCOUNT": "2000",
    }
