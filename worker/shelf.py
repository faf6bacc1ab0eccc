"""Checkpoints of one assignment that this worker has named to the coordinator.

A checkpoint stays on the shelf until a newer one is durable, so that what is on its way is never
pulled from under the transfer, and nothing that the coordinator might still need is lost.
"""

import asyncio
import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.blobs import BlobRef
from protocol.digests import canonical_bytes
from protocol.manifests import (
    CheckpointKind,
    CheckpointManifest,
    CurvePoint,
    ManifestFile,
    files_of,
)
from protocol.messages import Offer
from protocol.records import HeadRecord
from shared.logs import facts
from shared.training.runner import Event
from worker.membership import Membership
from worker.status import Board

log = logging.getLogger(__name__)

OVERDUE_INTERVALS = 10
"""A checkpoint that is not durable after so many checkpoint intervals is given up for a newer."""


@dataclass(frozen=True)
class Named:
    """A checkpoint under its manifest's reference, put on the shelf at `at` (loop time)."""

    ref: BlobRef
    manifest: CheckpointManifest
    at: float

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """The files and then the manifest."""
        return (*(file.blob for file in self.manifest.files), self.ref)


class Shelf:
    """What was named under one lease, oldest first."""

    def __init__(self, member: Membership, offer: Offer, board: Board) -> None:
        self._member = member
        self._offer = offer
        self._board = board
        self._named: list[Named] = []

    @property
    def newest(self) -> Named | None:
        """What was named last."""
        return self._named[-1] if self._named else None

    @property
    def newest_training(self) -> Named | None:
        """What heartbeats and a release name: nothing once the expert is there."""
        newest = self.newest
        return None if newest is None or newest.manifest.kind == "expert" else newest

    def has_room(self) -> bool:
        """Whether another training checkpoint should be named now.

        Not while the last one is on its way: on a slow line each would push out the one before,
        and none would ever arrive.
        """
        newest = self.newest
        if newest is None or newest.ref.digest in self._member.durable:
            return True
        age = asyncio.get_running_loop().time() - newest.at
        return age > OVERDUE_INTERVALS * self._offer.checkpoint_seconds

    async def put(self, kind: CheckpointKind, folder: Path, event: Event) -> Named:
        """Adds a checkpoint's files and manifest to the store and names them in the DHT.

        It counts against the cap of the store, so that inputs of earlier work make way for it.
        Raises OSError if the folder is gone or the disk is full.
        """
        if kind == "expert":
            self._board.update(state="handing_in")
        blobs = self._member.folder.blobs
        names = files_of(kind, self._offer.spec)
        await self._make_way([folder / name for name in names])
        files = [
            ManifestFile(name=name, blob=await asyncio.to_thread(blobs.add_file, folder / name))
            for name in names
        ]
        manifest = CheckpointManifest(
            kind=kind,
            spec=self._offer.spec.digest,
            worker=self._member.folder.identity.peer_id,
            step=event["step"],
            loss=event.get("loss"),
            files=tuple(files),
            curve=tuple(CurvePoint.model_validate(point) for point in event.get("curve", ())),
            inexact_from=event.get("inexact_from"),
        )
        ref = blobs.add_bytes(canonical_bytes(manifest))
        named = Named(ref, manifest, asyncio.get_running_loop().time())
        self._named.append(named)
        head = HeadRecord(s=manifest.step, h=ref.digest, n=ref.size, f=self._offer.fencing)
        self._member.publish(named.blobs, head=(self._offer.assignment, head))
        self.tidy()
        log.info("named %s", facts(kind=kind, step=manifest.step, manifest=ref.digest))
        return named

    async def _make_way(self, files: Sequence[Path]) -> None:
        """What the volunteer's machine worked for is never lost to the cap, which says so."""
        try:
            await self._member.holdings.make_way(sum(file.stat().st_size for file in files))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            log.warning("more blobs than the cap until the coordinator has them: %s", error)

    def tidy(self) -> None:
        """Gives back the disk of checkpoints that are older than a durable one."""
        durable = [
            place
            for place, named in enumerate(self._named)
            if named.ref.digest in self._member.durable
        ]
        if durable:
            self._drop(self._named[: durable[-1]])

    def clear(self, *, but: Named | None) -> None:
        """Gives back everything except `but`, when the lease is over."""
        self._drop([named for named in self._named if named is not but])

    def _drop(self, dropped: list[Named]) -> None:
        self._named = [named for named in self._named if named not in dropped]
        kept = {blob.digest for named in self._named for blob in named.blobs}
        for named in dropped:
            self._member.holdings.drop(
                blob.digest for blob in named.blobs if blob.digest not in kept
            )
