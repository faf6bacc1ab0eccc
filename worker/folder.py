"""Where a worker keeps its key, its blobs, its receipts and its work; one agent at a time."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from protocol.messages import Offer
from shared.blobs import BlobStore
from shared.blobs.upkeep import drop_idle, mend
from shared.clock import now
from shared.files import write_atomic
from shared.identity import Identity
from shared.training.ends import CurveEnds
from worker.errors import NotTheSameCoordinator, WorkerError
from worker.notes import (
    DELIVERIES,
    INPUTS,
    CachedInput,
    Delivery,
    are_torn,
    blobs_of,
    deliveries_in,
    device_path,
    inputs_in,
    lease_inputs,
    made_here,
    offer_in,
    offers_in,
    purposes,
)

log = logging.getLogger(__name__)

OFFER = "offer.json"
COORDINATORS = "coordinators.json"
"""Who answered at which address; there once a coordinator has answered."""

KEPT_WORK = 2
KEPT_WORK_SECONDS = 7 * 86_400.0
"""Training that no lease asks for is kept so long, and so many of them, or one for each device: if
the same assignment is offered to this worker again, it goes on from there."""

ENDS_BYTES = 4 * 2**30
"""Disk for last checkpoints from which a longer training can go on. They go before any input."""


class FolderInUse(WorkerError):
    """Another agent works in the folder."""


class WorkerFolder:
    """A folder of one worker. Raises WorkerError if it cannot be used or another agent uses it.

    `num_devices` are those that work from it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.num_devices = 1
        self._made = tuple(one for one in (root, *root.parents) if not one.exists())
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = self._take_lock()
        except OSError as error:
            raise WorkerError(
                f"folder {root}: {error.strerror}; choose another one with --folder"
            ) from error
        try:
            self.identity = Identity.load_or_create(root / "worker.key")
            self.blobs = BlobStore(root / "blobs")
            self.ends = CurveEnds(root / "ends", cap_bytes=ENDS_BYTES)
        except OSError as error:
            self._lock.close()
            raise WorkerError(
                f"folder {root}: {error.strerror}; make room, or choose another one with --folder"
            ) from error
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Lets another agent use the folder."""
        self._lock.close()

    def close_or_remove(self, *, remains: bool) -> None:
        """The same. A folder that was made for this is gone again, unless it `remains`.

        One that was there before stays as it is, whatever happened.
        """
        if self._made and not remains:
            shutil.rmtree(self.root, ignore_errors=True)
            for parent in self._made[1:]:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        self.close()

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
        path, known = self.root / "coordinators.json", self._pinned()
        if known.setdefault(url, peer_id) != peer_id:
            raise NotTheSameCoordinator(
                f"{url} answered as {peer_id}, but it was {known[url]} when this worker joined "
                f"first. If its operator made a new key, delete the line from {path}."
            )
        write_atomic(path, json.dumps(known, indent=2).encode())

    def has_met(self, url: str) -> bool:
        """Whether a coordinator ever answered at `url`."""
        return url in self._pinned()

    def agree(self, coordinator: str, *, at: float) -> None:
        """Remembers that the volunteer agreed to work for this coordinator."""
        path = self.root / "agreements.json"
        write_atomic(path, json.dumps({**self._agreements(), coordinator: at}, indent=2).encode())

    def has_agreed(self, url: str) -> bool:
        """Whether the volunteer agreed to work for the coordinator that is pinned for `url`."""
        return self._pinned().get(url) in self._agreements()

    def path(self, name: str, device_number: int) -> Path:
        """Where a device keeps a file of its own."""
        return device_path(self.root, name, device_number)

    def remember_offer(self, offer: Offer, device_number: int = 0) -> None:
        """Keeps the lease that a device is working on, so that a restart goes on with it."""
        write_atomic(self.path(OFFER, device_number), offer.model_dump_json().encode())

    def remembered_offer(self, device_number: int = 0) -> Offer | None:
        """The lease that a device was working on when the agent ended, if any."""
        return offer_in(self.root, device_number)

    def remembered_offers(self) -> dict[int, Offer]:
        """Those of all devices, by number."""
        return offers_in(self.root)

    def forget_offer(self, device_number: int = 0) -> None:
        """The device has no lease any more."""
        self.path(OFFER, device_number).unlink(missing_ok=True)

    def remember_deliveries(self, deliveries: Mapping[str, Delivery]) -> None:
        """Keeps what was handed in and not yet fetched, by manifest digest."""
        write_atomic(self.root / "deliveries.json", DELIVERIES.dump_json(dict(deliveries)))

    def remembered_deliveries(self) -> dict[str, Delivery]:
        """What was handed in and not yet known to be durable when the agent ended."""
        return deliveries_in(self.root)

    def remember_inputs(self, inputs: Mapping[str, CachedInput]) -> None:
        """Keeps what leases started from, by digest; what was used last comes last."""
        write_atomic(self.root / "inputs.json", INPUTS.dump_json(dict(inputs)))

    def remembered_inputs(self) -> dict[str, CachedInput]:
        """What leases of this and former lives started from, what was used last at the end."""
        return inputs_in(self.root)

    def sweep(self) -> tuple[str, ...]:
        """Deletes what nothing here needs any more: once, before anything starts.

        Kept: what this worker made and nobody has said to hold, what its lease starts from, and
        what earlier ones started from. Returns the digests that are gone, sorted.
        """
        mend(self.blobs, now=now())
        offers = self.remembered_offers().values()
        drop_idle(
            self.blobs, keep={one for each in offers for one in lease_inputs(each)}, now=now()
        )
        needed = {*purposes(self.root, self.blobs)}
        if self._lost_track():
            needed |= blobs_of(made_here(self.blobs))
        gone = sorted(digest for digest in self.blobs.digests() if digest not in needed)
        for digest in gone:
            self.blobs.delete(digest)
        self.sweep_work()
        return tuple(gone)

    def _pinned(self) -> dict[str, str]:
        """Who answers at which URL."""
        path = self.root / COORDINATORS
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return known

    def _agreements(self) -> dict[str, float]:
        """The coordinators that the volunteer agreed to work for, and when. Torn: none."""
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self.root / "agreements.json").read_text())
            return known if isinstance(known, dict) else {}
        return {}

    def _lost_track(self) -> bool:
        """Whether what was handed in once can no longer be read: then all that was made stays.

        Until the volunteer deletes the notes that were put aside.
        """
        aside = self.root / "deliveries.unreadable.json"
        if are_torn(self.root):
            os.replace(self.root / "deliveries.json", aside)
        if aside.exists():
            log.error("all that this worker made is kept: %s cannot be read; delete it", aside)
        return aside.exists()

    def drop_work(self, assignment: str) -> None:
        """Deletes training whose expert the coordinator holds, unless it is being done again."""
        if assignment not in self._leased():
            shutil.rmtree(self.work(assignment), ignore_errors=True)

    def sweep_work(self) -> None:
        """Deletes training that no lease asks for, but for the newest that wrote a checkpoint.

        To be called when a lease has ended, too: KEPT_WORK folders at most are left then, or one
        for each device, as all of them may have been asked to stop.
        """
        leased = self._leased()
        ages: dict[Path, float] = {}
        for folder in (self.root / "work").glob("*"):
            if folder.name not in leased:
                saved = [
                    path.stat().st_mtime for path in folder.glob("checkpoints/step-*/state.json")
                ]
                ages[folder] = now() - max(saved, default=0.0)
        kept = sorted(ages, key=lambda folder: ages[folder])[: max(KEPT_WORK, self.num_devices)]
        for folder, age in ages.items():
            if folder not in kept or age > KEPT_WORK_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _leased(self) -> set[str]:
        """The assignments that are worked on, or will be gone on with."""
        return {offer.assignment for offer in self.remembered_offers().values()}

    def _take_lock(self) -> IO[str]:
        lock = (self.root / "agent.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise FolderInUse(
                f"folder {self.root}: another hdee-worker (process {holder}) uses it; "
                "stop that one, or choose another folder with --folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock
