"""One blob on its way from several sources and in several ranges at once."""

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from protocol.blobs import BlobRef
from shared.blobs import BadPiece, PartialBlob
from shared.exchange.pool import MAX_RANGE_PIECES, Pool
from shared.exchange.sources import (
    Route,
    Source,
    SourceBusy,
    SourceFailed,
    UnknownBlob,
    WrongBytes,
)
from shared.exchange.streams import piece_range

Result = TypeVar("Result")

MAX_SOURCES = 3
LANES_PER_SOURCE = 2
MAX_LANES = 4
"""Of one download: each holds a piece in memory."""

BUSY_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds after which a busy source is asked again, before it counts as failed."""

SLOW_SECONDS = 20.0

RANGE_SECONDS = 4.0
"""How long a range should take its source: one that is slow gets small ones."""

PATIENCE = 2.0
"""A source with nothing left to do doubles a piece on which another has spent so many times as long
as it takes itself, and at least IDLE_SECONDS."""

IDLE_SECONDS = 1.0

OnBytes = Callable[[int], None]
"""Told of verified bytes as they come."""


@dataclass
class Outcome:
    """What came of it: pieces by route and source, why sources failed, and who sent wrong bytes.

    `is_unknown`: the coordinator says that there is no such blob for us.
    """

    pieces: Counter[tuple[Route, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    liars: list[str] = field(default_factory=list)
    is_unknown: bool = False

    def note(self, source: Source, error: SourceFailed) -> None:
        """A source failed. The last resort is never held for a liar: its disk may be mended."""
        self.failures.append(f"{source.name}: {error.reason}")
        self.is_unknown |= isinstance(error, UnknownBlob)
        if isinstance(error, WrongBytes) and source.route != "http":
            self.liars.append(source.name)


class Download:
    """Fetches what is missing of `arriving`; `turns` bounds the lanes of all downloads together."""

    def __init__(
        self,
        arriving: PartialBlob,
        pool: Pool,
        outcome: Outcome,
        *,
        turns: asyncio.Semaphore,
        on_bytes: OnBytes,
    ) -> None:
        self._arriving = arriving
        self._ref: BlobRef = arriving.ref
        self._pool = pool
        self._outcome = outcome
        self._turns = turns
        self._on_bytes = on_bytes
        self._changed = asyncio.Event()
        self._complete = asyncio.Event()
        self._num_bytes = 0
        self._num_lanes = 1
        self._begun: dict[int, tuple[str, float]] = {}
        """Pieces that are being read: by which source first, and since when."""
        self._doubled: set[int] = set()

    async def run(self, sources: Sequence[Source], *, slow_rate: float) -> None:
        """Return when nothing is missing, when every source has failed, or when all are too slow.

        Too slow: together they brought fewer than `slow_rate` bytes a second over SLOW_SECONDS.
        Sources are used in their order, MAX_SOURCES at a time. Raises OSError if this disk fails.
        """
        num_seats = min(MAX_SOURCES, len(sources))
        lanes = min(LANES_PER_SOURCE, max(1, MAX_LANES // num_seats))
        self._num_lanes = num_seats * lanes
        waiting = deque(sources)
        seats = [asyncio.create_task(self._seat(waiting, lanes)) for _ in range(num_seats)]
        watches: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._too_slow(slow_rate)),
            asyncio.create_task(self._complete.wait()),
        ]
        working: asyncio.Future[Any] = asyncio.gather(*seats)
        try:
            await asyncio.wait({working, *watches}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            elif not self._pool.is_done:
                self._outcome.failures.append(f"slower than {slow_rate / 1000:.0f} kB/s")
        finally:
            await _ended([*seats, *watches])
            await asyncio.gather(working, return_exceptions=True)

    async def _seat(self, waiting: "deque[Source]", num_lanes: int) -> None:
        while waiting and not self._pool.is_done:
            source = waiting.popleft()
            tasks = [asyncio.create_task(self._lane(source)) for _ in range(num_lanes)]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _ended(tasks)

    async def _lane(self, source: Source) -> None:
        """Ranges from one source, until nothing is missing or the source fails."""
        pace: float | None = None
        while not self._pool.is_done and source.name not in self._outcome.liars:
            run = self._pool.take(self._num_lanes, most=_affordable(pace))
            is_double = not run
            if is_double:
                run = self._overdue(source, pace)
            if not run:
                # What others are fetching may come back to the pool, or take them too long.
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), IDLE_SECONDS)
                continue
            started = _time()
            self._begun.setdefault(run.start, (source.name, started))
            try:
                async with self._turns:
                    await when_free(partial(self._read, source, run))
            except SourceFailed as error:
                self._outcome.note(source, error)
                return
            finally:
                if is_double:
                    self._doubled.difference_update(run)
                else:
                    self._pool.give_back(run)
                    for index in run:
                        self._begun.pop(index, None)
                self._changed.set()
            pace = (_time() - started) / len(run)

    def _overdue(self, source: Source, pace: float | None) -> range:
        """The piece that another source has for longest, if that is far too long; else none."""
        if pace is None:
            return range(0)
        latest = _time() - max(IDLE_SECONDS, PATIENCE * pace)
        late = [
            (since, index)
            for index, (name, since) in self._begun.items()
            if name != source.name
            and since < latest
            and index not in self._doubled
            and self._pool.is_missing(index)
        ]
        if not late:
            return range(0)
        _, index = min(late)
        self._doubled.add(index)
        return range(index, index + 1)

    async def _read(self, source: Source, run: range) -> None:
        """Read the pieces of `run`; what cannot be read or kept stays for somebody else."""
        index, piece = run.start, self._pool.pop_head(run.start)
        is_mixed = bool(piece)
        start = piece_range(self._ref, index)[0] + len(piece)
        end = piece_range(self._ref, run.stop - 1)[1]
        try:
            async with source.opened(self._ref, start, end - start) as read:
                for index in run:
                    self._begun.setdefault(index, (source.name, _time()))
                    length = self._arriving.piece_bytes(index)
                    while len(piece) < length:
                        chunk = await read(length - len(piece))
                        if piece:
                            piece += chunk
                        else:
                            piece = chunk
                        self._num_bytes += len(chunk)
                    whole, piece = piece, bytearray()
                    if not await self._keep(source, index, whole, is_mixed=is_mixed):
                        return
                    self._begun.pop(index, None)
                    is_mixed = False
                    # Let go of it before the next one is read: a lane holds one piece, not two.
                    whole = chunk = bytearray()
        finally:
            self._pool.keep_head(index, piece)

    async def _keep(self, source: Source, index: int, piece: bytearray, *, is_mixed: bool) -> bool:
        """False: its bytes came from two sources and are wrong; nobody is to blame."""
        try:
            await asyncio.to_thread(self._arriving.write_piece, index, piece)
        except BadPiece as error:
            if is_mixed:
                return False
            raise WrongBytes(str(error)) from error
        if not self._pool.is_missing(index):
            return True
        self._pool.done(index)
        self._outcome.pieces[source.route, source.name] += 1
        self._on_bytes(len(piece))
        if self._pool.is_done:
            self._changed.set()
            self._complete.set()
        return True

    async def _too_slow(self, slow_rate: float) -> None:
        """Return when they are."""
        before = -slow_rate * SLOW_SECONDS
        while self._num_bytes - before >= slow_rate * SLOW_SECONDS:
            before = self._num_bytes
            await asyncio.sleep(SLOW_SECONDS)


def _affordable(pace: float | None) -> int:
    """Pieces that a source brings in RANGE_SECONDS, at the seconds that it took for one."""
    if pace is None:
        return 1
    return max(1, min(MAX_RANGE_PIECES, int(RANGE_SECONDS / max(pace, 1e-3))))


def _time() -> float:
    return asyncio.get_running_loop().time()


async def when_free(ask: Callable[[], Awaitable[Result]]) -> Result:
    """What `ask` returns, asking again a few times while the source is busy."""
    for pause in BUSY_PAUSES:
        try:
            return await ask()
        except SourceBusy:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
    return await ask()


async def _ended(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
