"""What the coordinator asks to be uploaded: each blob by one task, again until it came."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from protocol.blobs import BlobRef
from shared.blobs import BlobMissing, BlobStore
from shared.exchange.sources import SourceFailed
from worker.errors import CoordinatorUnreachable, Refused
from worker.tasks import log_failure

log = logging.getLogger(__name__)

UPLOADED_SECONDS = 30.0
"""What was uploaded stays wanted until the coordinator has looked: it is not sent again so soon."""


class Uploads:
    """Blobs on their way to the coordinator. `upload` brings one there, or raises what hindered."""

    def __init__(self, store: BlobStore, upload: Callable[[BlobRef], Awaitable[None]]) -> None:
        self._store = store
        self._upload = upload
        self._underway: dict[str, asyncio.Task[None]] = {}
        self._done_at: dict[str, float] = {}

    def heed(self, wanted: Iterable[BlobRef]) -> None:
        """Begins with what is wanted and here, unless it is on its way or has just arrived."""
        now = asyncio.get_running_loop().time()
        self._done_at = {
            digest: at for digest, at in self._done_at.items() if now < at + UPLOADED_SECONDS
        }
        for ref in wanted:
            known = ref.digest in self._underway or ref.digest in self._done_at
            if not known and self._store.has(ref.digest):
                task = asyncio.create_task(self._bring(ref))
                task.add_done_callback(log_failure)
                self._underway[ref.digest] = task

    async def stop(self) -> None:
        """Ends the transfers; they go on in the next life, where they are still wanted."""
        tasks = [*self._underway.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring(self, ref: BlobRef) -> None:
        try:
            await self._upload(ref)
        except (BlobMissing, FileNotFoundError):
            log.info("upload of %s ended: a newer checkpoint took its place", ref.digest[:12])
        except (CoordinatorUnreachable, Refused, SourceFailed, OSError) as failure:
            log.warning("upload of %s will be tried again: %s", ref.digest[:12], failure)
        else:
            self._done_at[ref.digest] = asyncio.get_running_loop().time()
        finally:
            del self._underway[ref.digest]
