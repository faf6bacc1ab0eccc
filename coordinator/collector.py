"""Brings what workers announce to the coordinator, checks it, and only then calls it durable.

The ledger says what a checkpoint must be: the lease's holder named the manifest's digest, the
manifest names the digests of its files, and the spec says which tensors those files hold. Where no
peer can send a blob, the worker is asked to upload it over HTTP.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial

from pydantic import ValidationError
from shared.swarm.peer import FetchFailed, Peer

from coordinator.ledger import Ledger, queries
from coordinator.ledger.queries import CheckpointRow
from protocol.blobs import BlobRef
from protocol.manifests import MAX_MANIFEST_BYTES, CheckpointManifest, ManifestFile
from shared import tensorfiles
from shared.blobstore import BlobStore
from shared.logs import facts

log = logging.getLogger(__name__)

MAX_STATE_BYTES = 65_536
FETCH_SECONDS = 600.0
RETRY_SECONDS = 2.0


class CheckpointRefused(Exception):
    """The checkpoint can never be accepted; the message is the reason for the log."""


class NotHereYet(Exception):
    """A blob could not be fetched now; the worker has been asked for it."""


class Collector:
    """Collects announced checkpoints, several at a time. Call `collect` again and again."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: BlobStore,
        peer: Callable[[], Peer | None],
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._peer = peer
        self._now = now
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._not_before: dict[int, float] = {}

    async def collect(self) -> None:
        """Starts a task for every announced checkpoint that has none yet."""
        with self._ledger.read() as connection:
            rows = queries.announced_checkpoints(connection)
        for row in rows:
            key = row.checkpoint_id
            if key not in self._tasks and self._not_before.get(key, 0.0) <= self._now():
                task = asyncio.create_task(self._collect(row))
                self._tasks[key] = task
                task.add_done_callback(partial(self._done, key))

    def _done(self, key: int, _: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)

    async def stop(self) -> None:
        """Ends the transfers; they resume at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _collect(self, row: CheckpointRow) -> None:
        try:
            manifest = await self._manifest(row)
            check_manifest(row, manifest)
            for file in manifest.files:
                check_size(row, file)
                await self._bring(row, file.blob)
            await asyncio.to_thread(check_files, row, manifest, self._store)
        except NotHereYet:
            self._not_before[row.checkpoint_id] = self._now() + RETRY_SECONDS
        except CheckpointRefused as refusal:
            log.warning("refused %s: %s", facts(worker=row.worker, kind=row.kind), refusal)
            with self._ledger.begin() as connection:
                queries.mark_refused(connection, row.checkpoint_id, str(refusal), self._now())
        except Exception:
            log.exception("collecting %s failed", facts(checkpoint=row.checkpoint_id))
            self._not_before[row.checkpoint_id] = self._now() + RETRY_SECONDS
        else:
            self._keep(row, manifest)

    def _keep(self, row: CheckpointRow, manifest: CheckpointManifest) -> None:
        with self._ledger.begin() as connection:
            replaced = queries.mark_durable(connection, row.checkpoint_id, manifest, self._now())
        for digest in replaced:
            self._store.delete(digest)
        log.info(
            "durable %s",
            facts(assignment=row.assignment, kind=row.kind, step=row.step, worker=row.worker),
        )

    async def _manifest(self, row: CheckpointRow) -> CheckpointManifest:
        if row.manifest.size > MAX_MANIFEST_BYTES:
            raise CheckpointRefused(
                f"manifest: {row.manifest.size} bytes, expected at most {MAX_MANIFEST_BYTES}"
            )
        await self._bring(row, row.manifest)
        data = self._store.read(row.manifest, max_bytes=MAX_MANIFEST_BYTES)
        try:
            return CheckpointManifest.model_validate_json(data)
        except ValidationError as error:
            raise CheckpointRefused(f"manifest: {error.errors()[0]['msg']}") from error

    async def _bring(self, row: CheckpointRow, ref: BlobRef) -> None:
        if self._store.has(ref.digest):
            return
        peer = self._peer()
        if peer is not None and peer.healthy and row.worker_maddrs:
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    provider = await peer.fetch_blob(ref, self._store, providers=[row.worker])
            except (FetchFailed, TimeoutError) as failure:
                log.info("no peer could send %s: %s", ref.digest[:12], failure)
            else:
                log.info(
                    "fetched %s",
                    facts(digest=ref.digest, bytes=ref.size, route=f"libp2p from {provider}"),
                )
                return
        with self._ledger.begin() as connection:
            queries.want_blobs(connection, row.checkpoint_id, [ref], self._now())
        raise NotHereYet


def check_manifest(row: CheckpointRow, manifest: CheckpointManifest) -> None:
    """The manifest answers to the lease under which it was named. Raises CheckpointRefused."""
    for field, found, expected in (
        ("kind", manifest.kind, row.kind),
        ("spec", manifest.spec, row.spec.digest),
        ("worker", manifest.worker, row.worker),
        ("step", manifest.step, row.step),
    ):
        if found != expected:
            raise CheckpointRefused(f"manifest.{field}: {found!r}, expected {expected!r}")


def check_size(row: CheckpointRow, file: ManifestFile) -> None:
    """A file may be no larger than its spec allows, before a byte of it is fetched."""
    limit = (
        MAX_STATE_BYTES
        if file.name == "state.json"
        else tensorfiles.max_bytes(_expected_tensors(row, file))
    )
    if file.blob.size > limit:
        raise CheckpointRefused(f"{file.name}: {file.blob.size} bytes, expected at most {limit}")


def check_files(row: CheckpointRow, manifest: CheckpointManifest, store: BlobStore) -> None:
    """Every file has the tensors of its spec, all of them finite. Raises CheckpointRefused."""
    for file in manifest.files:
        path = store.path(file.blob.digest)
        try:
            if file.name == "state.json":
                json.loads(path.read_bytes())
            else:
                tensorfiles.check_file(path, _expected_tensors(row, file))
                tensorfiles.check_finite(path)
        except (tensorfiles.TensorFileError, ValueError) as error:
            raise CheckpointRefused(f"{file.name}: {error}") from error


def _expected_tensors(row: CheckpointRow, file: ManifestFile) -> dict[str, tensorfiles.TensorForm]:
    if file.name == "optimizer.safetensors":
        return tensorfiles.optimizer_tensors(row.spec.shape)
    return tensorfiles.model_tensors(row.spec.shape)
