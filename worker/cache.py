"""Inputs of training that are kept for the next lease, under a cap.

They came from the coordinator or through other peers, so they can be had again. What this worker
made is never evicted here: it goes once the coordinator has said that it holds it.
"""

import errno
import logging
import shutil
from collections.abc import Callable, Collection, Iterator

from protocol.blobs import BlobRef
from shared.blobs import BlobMissing
from shared.blobs.eviction import Candidate, choose
from shared.clock import now
from shared.logs import facts
from shared.words import amount
from worker.folder import WorkerFolder
from worker.notes import CachedInput

log = logging.getLogger(__name__)

MAX_INPUTS = 128
"""Inputs that are remembered. One that is forgotten is deleted when the next life begins."""

RESERVE_BYTES = 64 * 2**20
"""Of the disk, which are left to others: a full disk ends more than a training."""


class Cache:
    """The inputs in a worker's folder. `cap_bytes` is for its whole store, None: the disk's size.

    What they are outlives the process (`inputs.json`); what is not here any more is forgotten.
    `is_sound` and `make_room` may run in a thread, one at a time and not beside `add`; what only
    looks may run beside them.
    """

    def __init__(self, folder: WorkerFolder, *, cap_bytes: int | None) -> None:
        self._folder = folder
        self._blobs = folder.blobs
        self._cap_bytes = cap_bytes
        self._checked: set[str] = set()
        remembered = folder.remembered_inputs()
        self._inputs = {one: held for one, held in remembered.items() if self._blobs.has(one)}
        self._former = frozenset(self._inputs)

    def add(self, ref: BlobRef, *, public: bool) -> None:
        """Notes that an input is used now. What was public once stays so."""
        known = self._inputs.pop(ref.digest, None)
        public = public or (known is not None and known.public)
        self._inputs[ref.digest] = CachedInput(size=ref.size, public=public)
        while len(self._inputs) > MAX_INPUTS:
            del self._inputs[next(iter(self._inputs))]
        self._folder.remember_inputs(self._inputs)

    def is_public(self, digest: str) -> bool:
        """Whether this is an input that may be served on to anybody."""
        found = self._inputs.get(digest)
        return found is not None and found.public

    def __contains__(self, digest: object) -> bool:
        """Whether this is an input, here or yet to come: then only `make_room` deletes it."""
        return digest in self._inputs

    def digests(self) -> tuple[str, ...]:
        """The inputs that are here, used last first."""
        return tuple(one for one in reversed(tuple(self._inputs)) if self._blobs.has(one))

    def public_refs(self) -> tuple[BlobRef, ...]:
        """Those of them that may be served on, to be announced when a peer has started."""
        found = reversed(tuple(self._inputs.items()))
        return tuple(
            BlobRef(digest=digest, size=held.size)
            for digest, held in found
            if held.public and self._blobs.has(digest)
        )

    def is_sound(self, digest: str) -> bool:
        """Whether the input is here and what its digest says; if it is damaged, it is deleted.

        Only what a former life of this process brought is hashed, and only once.
        """
        if digest not in self._former or digest in self._checked:
            return self._blobs.has(digest)
        try:
            sound = self._blobs.verify(digest)
        except BlobMissing:
            return False
        if sound:
            self._checked.add(digest)
        else:
            log.error("an input was damaged on disk and is fetched again %s", facts(digest=digest))
            self._blobs.delete(digest)
        return sound

    def make_room(self, num_bytes: int, *, needed: Collection[str]) -> tuple[str, ...]:
        """Evicts inputs, used longest ago first, so that `num_bytes` still to come find room.

        `needed` are the blobs of the lease, what it made included: none of them goes, nor what was
        handed in and is not durable. First to go are the ends of trainings, and what has arrived of
        blobs that no longer come.
        Returns the digests that are gone. Raises OSError (ENOSPC) if there is not enough to evict.
        """
        return self._evict(lambda: self._excess(num_bytes), num_bytes, needed=needed)

    def make_way(self, num_bytes: int, *, needed: Collection[str]) -> tuple[str, ...]:
        """The same for `num_bytes` that are on this disk already, and come under the cap."""
        return self._evict(lambda: self._beyond_cap(num_bytes), num_bytes, needed=needed)

    def _evict(
        self, excess_now: Callable[[], int], num_bytes: int, *, needed: Collection[str]
    ) -> tuple[str, ...]:
        made = {one for each in self._folder.remembered_deliveries().values() for one in each.blobs}
        pinned = {*needed, *made}
        excess = excess_now()
        if excess > 0:
            self._folder.ends.make_room(excess)
            for digest in self._blobs.partials().keys() - pinned:
                self._blobs.drop_partial(digest, idle_since=now())
            excess = excess_now()
        chosen = choose(tuple(self._candidates()), excess_bytes=excess, pinned=pinned)
        if chosen is None:
            raise OSError(errno.ENOSPC, self._words(num_bytes), str(self._blobs.root))
        for digest in chosen:
            log.info("evicted %s", facts(digest=digest, bytes=self._inputs[digest].size))
            self._blobs.delete(digest)
            del self._inputs[digest]
        if chosen:
            self._folder.remember_inputs(self._inputs)
        return chosen

    def _excess(self, num_bytes: int) -> int:
        """Bytes that are too many once `num_bytes` more are here: by the cap, or for the disk."""
        beyond = num_bytes + RESERVE_BYTES - shutil.disk_usage(self._blobs.root).free
        return max(beyond, self._beyond_cap(num_bytes))

    def _beyond_cap(self, num_bytes: int) -> int:
        if self._cap_bytes is None:
            return 0
        held = self._blobs.size_on_disk() + self._folder.ends.size_on_disk()
        return held + num_bytes - self._cap_bytes

    def _candidates(self) -> Iterator[Candidate]:
        for digest in self._inputs:
            if self._blobs.has(digest):
                blocks = self._blobs.path(digest).stat().st_blocks
                yield Candidate(digest, 512 * blocks)

    def _words(self, num_bytes: int) -> str:
        held, free = self._blobs.size_on_disk(), shutil.disk_usage(self._blobs.root).free
        cap = "--disk sets no cap"
        if self._cap_bytes:
            cap = f"the cap is {amount(self._cap_bytes)} (--disk)"
        return (
            f"no room for {amount(num_bytes)}: {amount(held)} of blobs are here and nothing of "
            f"them may go, {cap}, {amount(free)} of the disk are free; "
            + ("raise --disk" if self._cap_bytes else "free some, or use --folder on another disk")
        )
