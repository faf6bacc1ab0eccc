"""The scorer: verification, planning, ensembles. Torch, no network."""

import logging
import os
import signal
import threading

from coordinator.roles import RoleContext
from coordinator.scoring.scorer import run_scorer
from coordinator.text.prepared import PrepareError, read_prepared
from shared.clock import now
from shared.orphan import watch_parent


def run(context: RoleContext) -> None:
    """Scores until it is asked to end."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if context.supervised:
        watch_parent(stop.set)
    folders = context.folders
    prepared = read_prepared(folders.prepared)
    if prepared is None:
        raise PrepareError(f"{folders.prepared} is missing: prepare the text first")
    ledger = context.open_ledger()
    try:
        run_scorer(
            context.run,
            folders,
            prepared.prepared,
            ledger,
            stop=stop,
            now=now,
            log=logging.getLogger("coordinator.scoring.scorer"),
            num_threads=os.cpu_count() or 1,
        )
    finally:
        ledger.close()
