"""The scorer's steps, in a thread of the process whose children train.

While all trainers are busy it computes on one thread and gives way to them; what they leave idle
is its own. A training that waits for it thus leaves it the core on which to hurry.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, queries
from coordinator.ledger.errors import LedgerUnavailable
from coordinator.runfile import RunFile
from coordinator.scoring.pulse import Pulse, Stopped
from coordinator.text.prepared import Prepared

IDLE_SECONDS = 0.5
NICE = 5
"""About a third of a core that a trainer wants too."""

log = logging.getLogger(__name__)


class LocalScoring:
    """`run` in a thread of its own until `stop`; `wake` it when there is something to look at."""

    def __init__(
        self,
        run: RunFile,
        folders: RunFolders,
        prepared: Prepared,
        ledger: Ledger,
        *,
        now: Callable[[], float],
    ) -> None:
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._place = (run, folders, prepared, ledger)
        self._ledger = ledger
        self._now = now
        self._pulse = Pulse(beat=self._beat, stop=self._stop, now=now, log=log)

    @property
    def doing(self) -> str | None:
        """What the scorer is at, and how far; None while it waits."""
        return self._pulse.doing

    def run(
        self,
        *,
        idle_cores: Callable[[], int],
        version: Callable[[], int],
        tell: Callable[[int | None], None],
    ) -> None:
        """Steps for as long as there are any, then waits for `wake` or a moment, and again.

        After each step `tell` is given None, or the `version` of the run for which nothing was
        left to do. Raises what the scorer raises.
        """
        _give_way()
        import torch  # noqa: PLC0415  # takes seconds to load, in which trainers start

        from coordinator.scoring.scorer import Scorer  # noqa: PLC0415

        scorer = Scorer(*self._place, pulse=self._pulse, now=self._now, log=log)
        while not self._stop.is_set():
            seen = version()
            torch.set_num_threads(max(1, idle_cores()))
            try:
                waits = not scorer.step()
            except Stopped:
                return
            except LedgerUnavailable as error:
                log.warning("the ledger does not answer, what was in hand is done again: %s", error)
                self._stop.wait(IDLE_SECONDS)
                continue
            tell(seen if waits else None)
            if waits:
                self._wake.wait(IDLE_SECONDS)
                self._wake.clear()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """Ends `run` soon; what was in hand is done again by the next one."""
        self._stop.set()
        self._wake.set()

    def _beat(self, moment: float) -> None:
        with self._ledger.begin() as connection:
            queries.beat_role(connection, "scorer", moment)


def _give_way() -> None:
    """This thread, and those that torch starts from it, yield to the trainers."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
