"""Coroutines beside other coroutines: none is forgotten, none dies without a word."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

Result = TypeVar("Result")

log = logging.getLogger(__name__)


async def unless_stopped(
    stopping: asyncio.Event, doing: Coroutine[Any, Any, Result]
) -> Result | None:
    """What `doing` returns, or None if `stopping` was set first: then `doing` is cancelled.

    Raises what `doing` raises.
    """
    task = asyncio.create_task(doing)
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for other in (task, waiting):
            other.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


@contextlib.asynccontextmanager
async def background(doing: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `doing` as long as the block lasts; what it raises goes to the log at once."""
    task = asyncio.create_task(doing)
    task.add_done_callback(log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def log_failure(task: asyncio.Task[Any]) -> None:
    """For `add_done_callback`: a task that failed says so."""
    if not task.cancelled() and task.exception() is not None:
        log.error("a background task failed", exc_info=task.exception())


async def all_of(*doing: Coroutine[Any, Any, Result]) -> list[Result]:
    """What each returns, in order. When one raises, or the caller is cancelled, all others are."""
    tasks = [asyncio.create_task(one) for one in doing]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Turns:
    """One at a time does what bears a name; whoever comes meanwhile waits."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def at(self, name: str) -> AsyncIterator[None]:
        """Waits for its turn, which lasts as long as the block."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            yield
