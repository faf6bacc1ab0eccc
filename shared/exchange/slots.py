"""How many streams may be answered at once, in all and of one peer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.exchange.sources import SourceFailed


class Slots:
    """So many streams at once, in all and for one peer."""

    def __init__(self, in_all: int, per_peer: int) -> None:
        self._in_all, self._per_peer = in_all, per_peer
        self._taken: Counter[str] = Counter()

    @property
    def num_taken(self) -> int:
        """Slots that are taken now."""
        return self._taken.total()

    @contextmanager
    def taken(self, peer: str) -> Iterator[bool]:
        """Whether there is a slot for this peer, taking it while this lasts."""
        if self.num_taken >= self._in_all or self._taken[peer] >= self._per_peer:
            yield False
            return
        self._taken[peer] += 1
        try:
            yield True
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


class Asking:
    """Streams whose request is not read yet, or was refused.

    Where all slots are taken the one that waits for longest makes way: whoever has a request sends
    it at once, so that strangers who ask nothing cannot keep members out, however many keys they
    use.
    """

    def __init__(self, in_all: int, per_peer: int) -> None:
        self._in_all, self._per_peer = in_all, per_peer
        self._taken: Counter[str] = Counter()
        self._waits: dict[asyncio.Timeout, None] = {}

    @property
    def num_taken(self) -> int:
        """Slots that are taken now."""
        return len(self._waits)

    @asynccontextmanager
    async def taken(self, peer: str) -> AsyncIterator[bool]:
        """Whether this peer may ask, for as long as this lasts. Raises SourceFailed."""
        if self._taken[peer] >= self._per_peer:
            yield False
            return
        if len(self._waits) >= self._in_all:
            oldest = next(iter(self._waits))
            del self._waits[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())
        self._taken[peer] += 1
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits[wait] = None
                yield True
        except TimeoutError as error:
            raise SourceFailed("made way for others who ask") from error
        finally:
            self._waits.pop(wait, None)
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]
