"""Where a worker keeps its key, its blobs and its work; one agent at a time."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from protocol.messages import Offer
from shared.blobstore import BlobStore
from shared.identity import Identity
from worker.errors import NotTheSameCoordinator, WorkerError


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
        write_text(path, json.dumps(known, indent=2))

    def remember_offer(self, offer: Offer) -> None:
        """Keeps the lease that is being worked on, so that a restart goes on with it."""
        write_text(self.root / "offer.json", offer.model_dump_json())

    def remembered_offer(self) -> Offer | None:
        """The lease that was being worked on when the agent ended, if any."""
        try:
            return Offer.model_validate_json((self.root / "offer.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def forget_offer(self) -> None:
        """There is no lease any more."""
        (self.root / "offer.json").unlink(missing_ok=True)

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


def write_text(path: Path, text: str) -> None:
    """Replaces a small file as a whole: never half-written, whatever ends the process."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
