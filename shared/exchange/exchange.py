"""One process's downloads: by tiers, with what is remembered between them.

A blob is fetched from the first tier that brings it. Verified pieces stay whatever happens, and a
switch to another source or tier goes on where the one before stopped.
"""

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from weakref import WeakValueDictionary

from pydantic import ValidationError

from protocol.blobs import BlobRef
from shared.blobs import BadBlob, BlobMissing, BlobStore, PartialBlob
from shared.exchange.download import MAX_SOURCES, Download, Outcome, when_free
from shared.exchange.pool import Pool
from shared.exchange.rates import Bucket
from shared.exchange.sources import (
    Route,
    Source,
    SourceFailed,
    Tier,
    WrongBytes,
)
from shared.logs import facts

log = logging.getLogger(__name__)

MAX_LANES_IN_ALL = 8

SLOW_RATE = 50_000.0
"""Bytes a second below which a tier is left for the next one, if there is one."""

_MAX_LIARS = 1024
_MAX_HEADS = 4

OnProgress = Callable[[BlobRef, int], None]
"""Told of a blob and how many of its bytes are here, whenever that grows."""


class FetchFailed(Exception):
    """No source gave the blob; `reason` says what each of them did.

    `is_unknown`: the coordinator says that there is none for us, so that asking again is of no use.
    """

    def __init__(self, reason: str, *, is_unknown: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_unknown = is_unknown


class Exchange:
    """Fetches blobs into `store`, no faster than `down` lets them flow."""

    def __init__(self, store: BlobStore, *, down: Bucket | None = None) -> None:
        self.store = store
        self.down = down or Bucket()
        self._turns = asyncio.Semaphore(MAX_LANES_IN_ALL)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._liars: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._heads: OrderedDict[tuple[str, int], bytearray] = OrderedDict()

    async def fetch(
        self,
        ref: BlobRef,
        tiers: Sequence[Tier],
        *,
        on_progress: OnProgress = lambda _ref, _num_bytes: None,
    ) -> str:
        """Fetch the blob and return the route that it took: "kept" if it was here already.

        A source that sent wrong bytes is not asked for this blob again. Raises FetchFailed with
        every reason, OSError if this machine's disk fails.
        """
        async with self._alone(ref.digest):
            if self.store.has(ref.digest):
                return "kept"
            started, outcome = asyncio.get_running_loop().time(), Outcome()
            for place, tier in enumerate(tiers):
                may_be_slow = tier.may_be_slow or place == len(tiers) - 1
                slow_rate = 0.0 if may_be_slow else self._slow_rate
                await self._try(ref, tier, outcome, on_progress, slow_rate=slow_rate)
                if self.store.has(ref.digest):
                    route = describe(outcome.pieces)
                    seconds = asyncio.get_running_loop().time() - started
                    log.info(
                        "fetched %s",
                        facts(digest=ref.digest, bytes=ref.size, seconds=seconds, route=route),
                    )
                    return route
        reasons = "; ".join(outcome.failures) or "no providers"
        raise FetchFailed(f"blob {ref.digest}: {reasons}", is_unknown=outcome.is_unknown)

    async def _try(
        self,
        ref: BlobRef,
        tier: Tier,
        outcome: Outcome,
        on_progress: OnProgress,
        *,
        slow_rate: float,
    ) -> None:
        sources = [
            source for source in await tier.find() if (ref.digest, source.name) not in self._liars
        ]
        arriving = await self._begin(ref, sources, outcome)
        if arriving is not None:
            missing = await asyncio.to_thread(arriving.missing)
            pool = Pool(missing)
            self._lend_heads(ref.digest, pool, missing)
            num_bytes = ref.size - sum(map(arriving.piece_bytes, missing))

            def on_bytes(more: int) -> None:
                nonlocal num_bytes
                num_bytes += more
                on_progress(ref, num_bytes)

            download = Download(arriving, pool, outcome, turns=self._turns, on_bytes=on_bytes)
            try:
                honest = [one for one in sources if one.name not in outcome.liars]
                if honest and not pool.is_done:
                    await download.run(honest, slow_rate=slow_rate)
                if pool.is_done:
                    await asyncio.to_thread(arriving.commit)
            except (BlobMissing, BadBlob):
                outcome.failures.append("what had arrived was deleted meanwhile")
            finally:
                self._take_heads(ref.digest, pool)
        self._remember(ref.digest, outcome.liars)

    async def _begin(
        self, ref: BlobRef, sources: Sequence[Source], outcome: Outcome
    ) -> PartialBlob | None:
        """What is here already, or a new start from the first source that sends the piece list."""
        arriving = await asyncio.to_thread(self.store.arriving, ref.digest)
        if arriving is not None and arriving.ref == ref:
            return arriving
        for first in range(0, len(sources), MAX_SOURCES):
            asking = [
                asyncio.create_task(self._start(ref, source, outcome))
                for source in sources[first : first + MAX_SOURCES]
            ]
            try:
                for answer in asyncio.as_completed(asking):
                    if (begun := await answer) is not None:
                        return begun
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        return None

    async def _start(self, ref: BlobRef, source: Source, outcome: Outcome) -> PartialBlob | None:
        try:
            pieces = await when_free(partial(source.pieces, ref))
            return await asyncio.to_thread(self.store.partial, ref, pieces)
        except (BadBlob, ValidationError) as error:
            outcome.note(source, WrongBytes(f"no piece list of this blob: {error}"[:300]))
        except SourceFailed as error:
            outcome.note(source, error)
        return None

    @property
    def _slow_rate(self) -> float:
        """Bytes a second below which a tier is too slow; little under a low limit of our own."""
        return min(SLOW_RATE, self.down.rate / MAX_LANES_IN_ALL)

    def _remember(self, digest: str, liars: Sequence[str]) -> None:
        for name in liars:
            if (digest, name) not in self._liars:
                log.warning("wrong bytes %s", facts(source=name, digest=digest))
            self._liars[digest, name] = None
        while len(self._liars) > _MAX_LIARS:
            self._liars.popitem(last=False)

    def _lend_heads(self, digest: str, pool: Pool, missing: Sequence[int]) -> None:
        for index in missing:
            if (head := self._heads.pop((digest, index), None)) is not None:
                pool.keep_head(index, head)

    def _take_heads(self, digest: str, pool: Pool) -> None:
        for index, head in pool.heads():
            self._heads[digest, index] = head
        while len(self._heads) > _MAX_HEADS:
            self._heads.popitem(last=False)

    @contextlib.asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """One download of a blob at a time; who comes second finds it there."""
        async with self._locks.setdefault(digest, asyncio.Lock()):
            yield


def describe(pieces: Counter[tuple[Route, str]]) -> str:
    """Who brought how much: "peer 12D3Koo…", or with pieces where there were several."""
    if not pieces:
        return "kept"
    if len(pieces) == 1:
        [(route, name)] = pieces
        return route if route == name else f"{route} {name}"
    parts = (
        f"{route if route == name else f'{route} {name}'}:{count}"
        for (route, name), count in pieces.most_common()
    )
    return " + ".join(parts)
