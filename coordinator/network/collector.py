"""Brings what workers announce to the coordinator, checks it, and only then calls it durable.

The ledger says what a checkpoint must be: the lease's holder named the manifest's digest, the
manifest names the digests of its files, and the spec says which tensors those files hold. Where no
peer can send a blob, the worker is asked to upload it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from coordinator.ledger import Ledger, queries
from coordinator.ledger.queries import CheckpointRow
from coordinator.network.disposal import dispose
from protocol.blobs import BlobRef
from protocol.manifests import (
    MAX_MANIFEST_BYTES,
    MAX_STATE_BYTES,
    CheckpointManifest,
    ManifestFile,
    TrainerState,
    files_of,
)
from shared import tensorfiles
from shared.blobs import BlobMissing, BlobStore
from shared.checkpointfiles import tensors_of
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.sources import Route, Source, Tier
from shared.exchange.streams import StreamSource
from shared.logs import facts
from shared.swarm.peer import Peer

log = logging.getLogger(__name__)

MAX_PROVIDERS = 16
"""Providers from the DHT that one fetch tries, beside the holder."""

RETRY_SECONDS = 2.0
DISK_RETRY_SECONDS = 30.0
"""After our own disk failed: until it is mended, each try is a line in the log."""

MAX_COLLECTIONS = 4
"""At once: each may hold a model in memory and a transfer open."""

TURN_SECONDS = 60.0
"""A collection that fetches for longer makes way for one that waits: workers on slow lines, or who
send slowly on purpose, must not keep the others' checkpoints from being collected. What it has
brought stays."""

MAX_REASON = 500


class CheckpointRefused(Exception):
    """The checkpoint can never be accepted; the message is the reason for the log."""


class NotHereYet(Exception):
    """A blob could not be fetched now; the worker has been asked for it."""


class Collector:
    """Collects announced checkpoints, MAX_COLLECTIONS at a time. Call `collect` again and again."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        exchange: Exchange,
        peer: Callable[[], Peer | None],
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._exchange = exchange
        self._store: BlobStore = exchange.store
        self._peer = peer
        self._now = now
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begun_at: dict[int, float] = {}
        self._not_before: dict[int, float] = {}
        self._brought: dict[int, set[str]] = {}
        """Blobs that were not here before their checkpoint was announced."""

    async def collect(self) -> None:
        """Starts tasks for announced checkpoints that have none, the longest untried ones first."""
        with self._ledger.read() as connection:
            rows = queries.announced_checkpoints(connection)
        self._tidy({row.checkpoint_id for row in rows})
        rows.sort(key=lambda row: self._not_before.get(row.checkpoint_id, 0.0))
        waiting = [
            row
            for row in rows
            if row.checkpoint_id not in self._tasks
            and self._not_before.get(row.checkpoint_id, 0.0) <= self._now()
        ]
        num_free = MAX_COLLECTIONS - len(self._tasks)
        for row in waiting[:num_free]:
            task = asyncio.create_task(self._collect(row))
            self._tasks[row.checkpoint_id] = task
            self._begun_at[row.checkpoint_id] = self._now()
            task.add_done_callback(partial(self._done, row.checkpoint_id))
        for _ in waiting[num_free:]:
            self._make_way()

    async def stop(self) -> None:
        """Ends the transfers; they resume at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tidy(self, announced: set[int]) -> None:
        """Forgets decided checkpoints, and deletes what came for those that were not kept."""
        for key in (
            (self._brought.keys() | self._not_before.keys()) - announced - self._tasks.keys()
        ):
            self._not_before.pop(key, None)
            dispose(self._ledger, self._store, self._brought.get(key, ()))
            self._brought.pop(key, None)

    def _make_way(self) -> None:
        """Ends the collection that has had its turn for longest, if any has."""
        if not self._begun_at:
            return
        key = min(self._begun_at, key=lambda key: self._begun_at[key])
        if self._now() - self._begun_at[key] > TURN_SECONDS:
            del self._begun_at[key]
            self._not_before[key] = self._now()
            self._tasks[key].cancel()

    def _done(self, key: int, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        self._begun_at.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("collecting %s failed", facts(checkpoint=key), exc_info=error)
            self._not_before[key] = self._now() + RETRY_SECONDS

    async def _collect(self, row: CheckpointRow) -> None:
        try:
            manifest = await self._manifest(row)
            check_manifest(row, manifest)
            for file in manifest.files:
                check_size(row, file)
            await self._bring(row, [file.blob for file in manifest.files])
            # Nobody else is to blame for what follows, and a check that is ended begins anew.
            self._begun_at.pop(row.checkpoint_id, None)
            await asyncio.to_thread(check_files, row, manifest, self._store)
            self._keep(row, manifest)
        except (NotHereYet, BlobMissing):
            self._not_before[row.checkpoint_id] = self._now() + RETRY_SECONDS
        except CheckpointRefused as refusal:
            self._refuse(row, str(refusal))
        except OSError as error:
            log.error("the disk failed %s", facts(checkpoint=row.checkpoint_id, error=error))
            self._not_before[row.checkpoint_id] = self._now() + DISK_RETRY_SECONDS

    def _keep(self, row: CheckpointRow, manifest: CheckpointManifest) -> None:
        with self._ledger.begin() as connection:
            # Another checkpoint's end may have deleted a blob that this one has in common with it.
            for ref in (row.manifest, *(file.blob for file in manifest.files)):
                if not self._store.has(ref.digest):
                    raise BlobMissing(ref.digest)
            replaced = queries.mark_durable(connection, row.checkpoint_id, manifest, self._now())
        dispose(self._ledger, self._store, replaced)
        log.info(
            "durable %s",
            facts(assignment=row.assignment, kind=row.kind, step=row.step, worker=row.worker),
        )

    def _refuse(self, row: CheckpointRow, words: str) -> None:
        reason = in_print(words)
        log.warning("refused %s: %s", facts(worker=row.worker, kind=row.kind), reason)
        with self._ledger.begin() as connection:
            replaced = queries.mark_refused(connection, row.checkpoint_id, reason, self._now())
        dispose(self._ledger, self._store, replaced)

    async def _manifest(self, row: CheckpointRow) -> CheckpointManifest:
        if row.manifest.size > MAX_MANIFEST_BYTES:
            raise CheckpointRefused(
                f"manifest: {row.manifest.size} bytes, expected at most {MAX_MANIFEST_BYTES}"
            )
        await self._bring(row, [row.manifest])
        data = self._store.read(row.manifest, max_bytes=MAX_MANIFEST_BYTES)
        try:
            return CheckpointManifest.model_validate_json(data)
        except ValidationError as error:
            raise CheckpointRefused(f"manifest: {_first(error)}") from error

    async def _bring(self, row: CheckpointRow, refs: Sequence[BlobRef]) -> None:
        """All of `refs` are here afterwards; if not, the worker is asked to upload the others."""
        missing = [ref for ref in refs if not self._has(ref)]
        self._brought.setdefault(row.checkpoint_id, set()).update(ref.digest for ref in missing)
        while missing and await self._fetched(row, missing[0]):
            del missing[0]
        if missing:
            with self._ledger.begin() as connection:
                queries.want_blobs(connection, row.checkpoint_id, missing, self._now())
            raise NotHereYet

    def _has(self, ref: BlobRef) -> bool:
        """A digest stands for one size. What is here under a wrong one is nobody's small file: to
        read it could take all memory. Raises CheckpointRefused then."""
        if not self._store.has(ref.digest):
            return False
        size = self._store.path(ref.digest).stat().st_size
        if size != ref.size:
            raise CheckpointRefused(f"blob {ref.digest}: {ref.size} bytes, expected {size}")
        return True

    async def _fetched(self, row: CheckpointRow, ref: BlobRef) -> bool:
        peer = self._peer()
        if peer is None or not peer.healthy or not row.worker_maddrs:
            return False
        try:
            await self._exchange.fetch(ref, self._tiers(peer, row, ref))
        except FetchFailed as failure:
            log.info("no peer could send %s: %s", ref.digest[:12], failure)
            return False
        return True

    def _tiers(self, peer: Peer, row: CheckpointRow, ref: BlobRef) -> list[Tier]:
        """First who named it, at the addresses that the ledger knows, then others in random order.

        The last one is the worker itself, which is asked to upload.
        """

        def source(route: Route, name: str, maddrs: Sequence[str]) -> Source:
            opener = peer.opener(name, maddrs)
            return StreamSource(opener, peer=name, route=route, down=self._exchange.down)

        async def holder() -> list[Source]:
            return [source("direct", row.worker, row.worker_maddrs)]

        async def others() -> list[Source]:
            found = [
                source("peer", name, record.m)
                for name, record in await peer.providers(ref.digest)
                if name not in (row.worker, peer.peer_id)
            ]
            random.shuffle(found)
            return found[:MAX_PROVIDERS]

        return [Tier("direct", holder, may_be_slow=True), Tier("peer", others)]


def in_print(words: str) -> str:
    """Words that may quote a stranger, as logs and ledgers can keep them: no line's end, no NUL, no
    half of a character, and no more than MAX_REASON."""
    return "".join(one if one.isprintable() else "?" for one in words[:MAX_REASON])


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
    names, expected_names = tuple(f.name for f in manifest.files), files_of(row.kind, row.spec)
    if names != expected_names:
        raise CheckpointRefused(f"manifest.files: {names}, expected {expected_names}")
    if manifest.step > row.spec.train.num_steps:
        raise CheckpointRefused(
            f"manifest.step: {manifest.step}, expected at most {row.spec.train.num_steps}"
        )


def check_size(row: CheckpointRow, file: ManifestFile) -> None:
    """A file may be no larger than its spec allows, before a byte of it is fetched."""
    limit = (
        MAX_STATE_BYTES
        if file.name == "state.json"
        else tensorfiles.max_bytes(tensors_of(file.name, row.spec))
    )
    if file.blob.size > limit:
        raise CheckpointRefused(f"{file.name}: {file.blob.size} bytes, expected at most {limit}")


def check_files(row: CheckpointRow, manifest: CheckpointManifest, store: BlobStore) -> None:
    """What a trainer could not go on with is refused here. Raises CheckpointRefused, BlobMissing.

    Every file has the tensors of its spec, all of them finite, and no second moment is negative;
    the state is that of the spec and step that the manifest names.
    """
    for file in manifest.files:
        path = store.path(file.blob.digest)
        try:
            if file.name == "state.json":
                check_state(path.read_bytes(), manifest)
            else:
                tensorfiles.check_file(path, tensors_of(file.name, row.spec))
                tensorfiles.check_finite(path)
                _check_second_moments(path)
        except (tensorfiles.TensorFileError, ValueError) as error:
            raise CheckpointRefused(f"{file.name}: {error}"[:MAX_REASON]) from error


def check_state(data: bytes, manifest: CheckpointManifest) -> None:
    """state.json answers to its manifest. Raises ValueError."""
    try:
        state = TrainerState.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(_first(error)) from error
    for field, found, expected in (
        ("spec", state.spec, manifest.spec),
        ("step", state.step, manifest.step),
        ("inexact_from", state.inexact_from, manifest.inexact_from),
    ):
        if found != expected:
            raise ValueError(f"{field} {found!r}, expected {expected!r}")


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")


def _check_second_moments(path: Path) -> None:
    for name, tensor in tensorfiles.read_tensors(path).items():
        if name.startswith("exp_avg_sq.") and (tensor < 0).any():
            raise ValueError(f"tensor {name} has negative values")
