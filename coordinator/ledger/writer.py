"""Many small writes in one commit: what an api that serves thousands of workers needs.

A commit waits for the disk, so those who want to write at the same time share one. Their callers
are coroutines; one thread does the work. Nobody is told that something is done before it is
durable. Does not promise an order between urgent and patient writes beyond urgent ones first.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from coordinator.ledger import Ledger
from coordinator.ledger.errors import LedgerBusy, LedgerError, LedgerUnavailable
from coordinator.ledger.savepoints import Savepoints

MAX_WAITING = 20_000
"""Of each kind; what comes beyond that is refused at once."""

URGENT_SECONDS = 0.100
PATIENT_SECONDS = 0.020
"""How long a batch goes on taking writes of a kind; it takes at least one."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Write:
    """One caller's work, and what became of it."""

    work: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class GroupWriter:
    """Writes to one ledger for the coroutines of this process. Start it, write, stop it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._changed = threading.Condition()
        self._urgent: deque[_Write] = deque()
        self._patient: deque[_Write] = deque()
        self._on_failure: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._stopping = False

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, in the writer's thread, when a batch was not committed.

        It runs before any other work does. Whoever keeps in memory what works have read or written
        must forget it then.
        """
        self._on_failure.append(callback)

    def start(self) -> None:
        """Start the thread. LedgerError while one runs."""
        if self._thread is not None:
            raise LedgerError("the writer runs already")
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Refuse what comes from now on, do what waits, deliver it, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._thread, self._stopping = None, False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    async def write(self, work: Callable[[Connection], T], *, urgent: bool = True) -> T:
        """Do `work` in the writer's thread and return its result once that is committed.

        What `work` raises undoes `work` alone and is raised here. It shares its
        transaction with other callers' works, so it must neither commit nor roll back.

        A caller that is cancelled before its turn leaves nothing; after that its work stands.

        Raises LedgerBusy when too many wait, LedgerUnavailable when the commit failed, and
        LedgerError when the writer does not run.
        """
        loop = asyncio.get_running_loop()
        write = _Write(work, loop, loop.create_future())
        queue = self._urgent if urgent else self._patient
        with self._changed:
            if self._thread is None or self._stopping:
                raise LedgerError("the writer does not run: it was not started, or it is stopping")
            if len(queue) >= MAX_WAITING:
                raise LedgerBusy(f"{len(queue)} writes wait already, at most {MAX_WAITING} may")
            queue.append(write)
            self._changed.notify()
        result: T = await write.future
        return result

    def pending(self, *, urgent: bool) -> int:
        """How many writes of a kind wait for their turn."""
        return len(self._urgent if urgent else self._patient)

    def _run(self) -> None:
        while self._await_work():
            batch: list[_Write] = []
            try:
                with self._ledger.begin() as connection:
                    parts = Savepoints(connection)
                    for write in self._due():
                        batch.append(write)
                        _do(connection, write, parts)
            except Exception as error:
                batch = batch or self._take_all()
                trace = not isinstance(error, LedgerUnavailable)
                log.error("%d writes were not committed: %s", len(batch), error, exc_info=trace)
                self._fail(batch, error)
            else:
                _deliver(batch)

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._urgent or self._patient):
                if self._stopping:
                    return False
                self._changed.wait()
        return True

    def _due(self) -> Iterator[_Write]:
        yield from _take(self._urgent, URGENT_SECONDS)
        yield from _take(self._patient, PATIENT_SECONDS)

    def _take_all(self) -> list[_Write]:
        # No transaction could begin, so trying the next one would fail in the same way.
        return [
            queue.popleft() for queue in (self._urgent, self._patient) for _ in range(len(queue))
        ]

    def _fail(self, batch: list[_Write], error: Exception) -> None:
        for callback in self._on_failure:
            try:
                callback()
            except Exception:
                log.exception("what was to follow a failed commit failed, too")
        for write in batch:
            # An error of its own is no better: it may come from what others had written before.
            write.error = LedgerUnavailable(f"the write was not committed: {error}")
            write.error.__cause__ = error
        _deliver(batch)


def _take(queue: deque[_Write], seconds: float) -> Iterator[_Write]:
    """What waits by now, for so long; what arrives meanwhile is for the next batch."""
    until = time.monotonic() + seconds
    for _ in range(len(queue)):
        write = queue.popleft()
        if not write.future.cancelled():
            yield write
        if time.monotonic() >= until:
            return


def _do(connection: Connection, write: _Write, parts: Savepoints) -> None:
    try:
        write.result = write.work(connection)
        # Fails, too, when the work has swallowed an error after which the server wants an undo.
        parts.keep()
    except BaseException as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        parts.undo()
        # A future refuses StopIteration, as coroutines do.
        stopped = isinstance(error, StopIteration)
        write.error = RuntimeError("a work raised StopIteration") if stopped else error


def _deliver(batch: list[_Write]) -> None:
    """Wake each loop once, however many of its coroutines wait."""
    groups: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in batch:
        groups.setdefault(write.loop, []).append(write)
    for loop, group in groups.items():
        # A closed loop refuses: nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, group)


def _settle(group: list[_Write]) -> None:
    for write in group:
        if write.future.done():
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.result)
