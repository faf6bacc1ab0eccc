"""Where a worker keeps its key, its blobs, its receipts and its work; one agent at a time."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field, TypeAdapter, ValidationError

from protocol.ids import AssignmentId, Digest
from protocol.messages import Offer, Submission
from protocol.values import Amount, Value
from shared.blobstore import BlobStore
from shared.files import write_atomic
from shared.identity import Identity
from worker.errors import NotTheSameCoordinator, WorkerError


class Delivery(Value):
    """A checkpoint that was handed in at `at` (seconds since 1970), and the blobs that it needs.

    `submission` is None for the training checkpoint of a lease that was given back.
    """

    assignment: AssignmentId
    submission: Submission | None
    blobs: Annotated[tuple[Digest, ...], Field(strict=False, max_length=16)]
    at: Amount


_DELIVERIES = TypeAdapter(dict[Digest, Delivery])


class WorkerFolder:
    """A folder of one worker. Raises WorkerError if it cannot be used or another agent uses it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = self._take_lock()
        except OSError as error:
            raise WorkerError(
                f"folder {root}: {error.strerror}; choose another one with --folder"
            ) from error
        self.identity = Identity.load_or_create(root / "worker.key")
        self.blobs = BlobStore(root / "blobs")

    def close(self) -> None:
        """Lets another agent use the folder."""
        self._lock.close()

    def work(self, assignment: str) -> Path:
        """The trainer's folder for one assignment."""
        return self.root / "work" / assignment

    def receipts(self, coordinator: str) -> Path:
        """Where the receipts of one coordinator are kept."""
        return self.root / "receipts" / coordinator

    def pin_coordinator(self, url: str, peer_id: str) -> None:
        """Remembers who answers at `url`; refuses anybody else later.

        Raises NotTheSameCoordinator if another key answered there before.
        """
        path = self.root / "coordinators.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        if known.setdefault(url, peer_id) != peer_id:
            raise NotTheSameCoordinator(
                f"{url} answered as {peer_id}, but it was {known[url]} when this worker joined "
                f"first. If its operator made a new key, delete the line from {path}."
            )
        write_atomic(path, json.dumps(known, indent=2).encode())

    def remember_offer(self, offer: Offer) -> None:
        """Keeps the lease that is being worked on, so that a restart goes on with it."""
        write_atomic(self.root / "offer.json", offer.model_dump_json().encode())

    def remembered_offer(self) -> Offer | None:
        """The lease that was being worked on when the agent ended, if any."""
        try:
            return Offer.model_validate_json((self.root / "offer.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def forget_offer(self) -> None:
        """There is no lease any more."""
        (self.root / "offer.json").unlink(missing_ok=True)

    def remember_deliveries(self, deliveries: Mapping[str, Delivery]) -> None:
        """Keeps what was handed in and not yet fetched, by manifest digest."""
        found = {manifest: one.model_dump(mode="json") for manifest, one in deliveries.items()}
        write_atomic(self.root / "deliveries.json", json.dumps(found).encode())

    def remembered_deliveries(self) -> dict[str, Delivery]:
        """What was handed in and not yet known to be durable when the agent ended."""
        try:
            return _DELIVERIES.validate_json((self.root / "deliveries.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return {}

    def sweep(self) -> None:
        """Deletes what no lease and no delivery needs: once, before anything starts."""
        offer = self.remembered_offer()
        needed = {digest for one in self.remembered_deliveries().values() for digest in one.blobs}
        if offer is not None:
            needed.add(offer.shard.digest)
            for manifest in (offer.parent and offer.parent.manifest, offer.resume):
                needed |= {file.blob.digest for file in manifest.files} if manifest else set()
        for digest in list(self.blobs.digests()):
            if digest not in needed:
                self.blobs.delete(digest)
        for folder in (self.root / "work").glob("*"):
            if offer is None or folder.name != offer.assignment:
                shutil.rmtree(folder, ignore_errors=True)

    def _take_lock(self) -> IO[str]:
        lock = (self.root / "agent.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise WorkerError(
                f"folder {self.root}: another hdee-worker (process {holder}) uses it; "
                "stop that one, or choose another folder with --folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock
