"""The blobs that a worker brings here and gives up again. Its devices share them."""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from protocol.blobs import BlobRef
from protocol.records import provider_key
from worker.cache import Cache
from worker.folder import WorkerFolder
from worker.notes import lease_inputs
from worker.presence import Presence
from worker.transfers import Transfers


class Holdings:
    """The blobs in a worker's folder, as the leases of its devices need them.

    Whoever makes room on the disk, or takes what others may evict, holds `disk` meanwhile.
    """

    def __init__(
        self, folder: WorkerFolder, cache: Cache, *, transfers: Transfers, presence: Presence
    ) -> None:
        self.disk = asyncio.Lock()
        self._folder = folder
        self._cache = cache
        self._transfers = transfers
        self._presence = presence

    async def fetch_input(self, ref: BlobRef, *, public: bool, needed: Collection[str]) -> Path:
        """Brings what training starts from, and remembers that it is here.

        `public` inputs are served on to other peers. `needed` are the blobs of the lease, which no
        other may push out. Raises CoordinatorUnreachable if no route works, OSError if there is no
        room for it.
        """
        async with self.disk:
            self._cache.add(ref, public=public)
            is_here = await asyncio.to_thread(self._cache.is_sound, ref.digest)
        if not is_here:
            await self.make_room([ref], needed=needed)
            await self.fetch(ref)
        if public:
            self._presence.publish([ref])
        return self._folder.blobs.path(ref.digest)

    async def make_room(self, refs: Sequence[BlobRef], *, needed: Collection[str]) -> None:
        """Evicts cached inputs until what is not here of `refs` fits; none of any device's lease.

        Raises OSError if they cannot.
        """
        async with self.disk:
            num_bytes = sum(self._folder.blobs.bytes_to_come(ref) for ref in refs)
            pinned = self._pinned(needed)
            gone = await asyncio.to_thread(self._cache.make_room, num_bytes, needed=pinned)
        self._forget(gone)

    async def make_way(self, num_bytes: int) -> None:
        """The same for what was made here, on this disk, and is to become blobs under the cap."""
        async with self.disk:
            pinned = self._pinned(())
            gone = await asyncio.to_thread(self._cache.make_way, num_bytes, needed=pinned)
        self._forget(gone)

    async def fetch(self, ref: BlobRef) -> str:
        """Brings a blob into the worker's store; returns the route that it took.

        Raises CoordinatorUnreachable if no route works.
        """
        return await self._transfers.fetch(ref)

    def drop(self, digests: Iterable[str]) -> None:
        """Stops naming blobs and deletes them, unless they are inputs, which the cache keeps."""
        for digest in digests:
            if digest not in self._cache:
                self._presence.forget([provider_key(digest)])
                self._folder.blobs.delete(digest)

    def _pinned(self, needed: Collection[str]) -> set[str]:
        offers = self._folder.remembered_offers().values()
        return {*needed, *(digest for offer in offers for digest in lease_inputs(offer))}

    def _forget(self, gone: Iterable[str]) -> None:
        self._presence.forget([provider_key(digest) for digest in gone])
