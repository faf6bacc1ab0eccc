"""The local workers' leases: what the api and the collector do for a worker, done here.

All of it through the ledger's own functions, so that its invariants hold and its entries tell the
same story as a run that is served. The role that is said to live is the api's, since this process
grants the leases: whoever reads the ledger later knows how long nobody did.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.ledger import Ledger, queries
from coordinator.lifecycle import Holder, Refused
from coordinator.local.choosing import choose
from coordinator.network.disposal import dispose
from protocol.assignments import AssignmentState
from protocol.capability import Capability
from protocol.digests import canonical_bytes
from protocol.manifests import (
    CheckpointManifest,
    CurvePoint,
    FileName,
    ManifestFile,
    files_of,
)
from protocol.messages import AssignmentHeartbeat, Release, ReleaseReason, Submission
from shared.blobs import BlobStore
from shared.checkpointfiles import tensors_of
from shared.logs import facts
from shared.tensorfiles import check_file, check_finite
from shared.training.runner import Event
from shared.version import SOFTWARE_VERSION

log = logging.getLogger(__name__)

MODEL: FileName = "model.safetensors"
FOREVER = 1e12
"""Seconds since 1970 until when a local worker's token, which nobody has, would hold."""


class LeaseLost(Exception):
    """The ledger no longer knows the lease as this worker's; the message says why."""


@dataclass(frozen=True)
class Lease:
    """An assignment that a local worker holds. `first_step`: see AssignmentHeartbeat."""

    row: queries.AssignmentRow
    worker: str
    fencing: int
    first_step: int | None = None

    @property
    def assignment(self) -> str:
        """The assignment's id."""
        return self.row.assignment


class Leases:
    """The leases of this machine's workers, one for each trainer. Several threads may use it."""

    def __init__(
        self,
        ledger: Ledger,
        store: BlobStore,
        *,
        heartbeat_seconds: float,
        max_attempts: int,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._heartbeat_seconds = heartbeat_seconds
        self._max_attempts = max_attempts
        self._now = now
        self._lock = threading.Lock()
        self.workers: tuple[str, ...] = ()
        self.version = 0
        """Grows with every change that the scorer may have to look at."""

    def begin(self, workers: Sequence[str], former: Sequence[str], capability: Capability) -> None:
        """Registers the workers; what other `former` ones of this machine held is open again.

        The time in which nobody granted leases is forgiven: a lease of a killed life goes on.
        """
        self.workers = tuple(workers)
        self.tick()
        now = self._now()
        with self._ledger.begin() as connection:
            for number, worker in enumerate(workers, start=1):
                registration = queries.Registration(
                    worker=worker,
                    name=f"local-{number}",
                    software_version=SOFTWARE_VERSION,
                    capability=capability,
                    maddrs=(),
                    token_digest=secrets.token_hex(32),
                    token_expires_at=FOREVER,
                    certificate_expires_at=0.0,
                    allowed_at=now,
                )
                queries.register_worker(connection, registration, now)
            for worker in former:
                if worker not in workers:
                    queries.expire_leases_of(connection, worker, now=now)

    def tick(self) -> None:
        """A sign of life; leases whose time ran out are open again, but not for our silence."""
        now = self._now()
        with self._ledger.begin() as connection:
            queries.forgive_downtime(connection, now=now, tolerance_seconds=self._heartbeat_seconds)
            queries.beat_role(connection, "api", now)
            for expired in queries.expire_leases(connection, now):
                words = facts(assignment=expired.assignment, worker=expired.worker)
                log.warning("%s ran out %s", expired.state, words)

    def take_up(self, worker: str) -> Lease | None:
        """The lease that a former life of this worker left."""
        with self._ledger.begin() as connection:
            attempt = queries.live_lease_of(connection, worker)
            if attempt is None:
                return None
            holder = Holder(worker=worker, fencing=attempt.fencing)
            held = queries.acknowledge_lease(
                connection,
                attempt.assignment,
                holder,
                now=self._now(),
                heartbeat_seconds=self._heartbeat_seconds,
            )
            if isinstance(held, Refused):
                queries.expire_leases_of(connection, worker, now=self._now())
                return None
            row = queries.get_assignment(connection, attempt.assignment)
        return Lease(row, worker, attempt.fencing)

    def take(self, worker: str) -> Lease | None:
        """The next assignment, leased to this worker; None: there is none for it now."""
        now, beat = self._now(), self._heartbeat_seconds
        with self._ledger.begin() as connection:
            rows = queries.all_assignments(connection)
            accepted = queries.accepted_specs(connection)
            row = choose(rows, accepted=accepted, workers=self.workers, now=now)
            if row is None:
                return None
            terms = queries.OfferTerms(
                assignment=row.assignment,
                worker=worker,
                free_memory_bytes=0,
                reason="trained on the coordinator's own machine",
            )
            offered = queries.offer_assignment(connection, terms, now=now, heartbeat_seconds=beat)
            if isinstance(offered, Refused):
                log.warning("%s is not taken: %s", row.assignment, offered.message)
                return None
            holder = Holder(worker=worker, fencing=offered.standing.fencing)
            queries.acknowledge_lease(
                connection, row.assignment, holder, now=now, heartbeat_seconds=beat
            )
        return Lease(row, worker, holder.fencing)

    def parent_of(self, lease: Lease) -> queries.AcceptedRow | None:
        """The accepted checkpoint that training starts from; None for fresh weights."""
        if lease.row.spec.parent is None:
            return None
        with self._ledger.read() as connection:
            parent = queries.accepted_of(connection, lease.row.spec.parent)
        assert parent is not None, f"{lease.assignment} was leased before its parent was accepted"
        return parent

    def renew(self, lease: Lease, event: Event, *, flops_per_second: float) -> None:
        """The trainer's newest progress, which keeps the lease alive. Raises LeaseLost."""
        beat = AssignmentHeartbeat(
            fencing=lease.fencing,
            step=event.get("step", 0),
            loss=event.get("loss"),
            tokens_per_second=event.get("tokens_per_second", 0.0),
            checkpoint=None,
            first_step=lease.first_step,
        )
        with self._ledger.begin() as connection:
            outcome = queries.renew_lease(
                connection,
                lease.assignment,
                beat,
                worker=lease.worker,
                flops_per_second=flops_per_second,
                now=self._now(),
                heartbeat_seconds=self._heartbeat_seconds,
            )
        if isinstance(outcome, Refused):
            raise LeaseLost(outcome.message)

    def hand_in(self, lease: Lease, last: Event) -> None:
        """The expert of a `finished` event, collected and submitted in one transaction.

        Raises LeaseLost, TensorFileError when a file is not what the spec says, OSError.
        """
        spec, folder = lease.row.spec, Path(last["file"]).parent
        names = files_of("expert", spec)
        for name in names:
            check_file(folder / name, tensors_of(name, spec))
            check_finite(folder / name)
        manifest = CheckpointManifest(
            kind="expert",
            spec=spec.digest,
            worker=lease.worker,
            step=last["step"],
            loss=last["loss"],
            files=tuple(
                ManifestFile(name=name, blob=self._store.add_file(folder / name)) for name in names
            ),
            curve=tuple(CurvePoint.model_validate(point) for point in last["curve"]),
            inexact_from=last["inexact_from"],
        )
        submission = Submission(
            request_id=secrets.token_hex(16),
            fencing=lease.fencing,
            manifest=self._store.add_bytes(canonical_bytes(manifest)),
            tokens_per_second=last["tokens_per_second"],
            train_seconds=last["train_seconds"],
            first_step=lease.first_step,
        )
        unneeded = self._submit(lease, submission, manifest)
        dispose(self._ledger, self._store, unneeded)
        self._changed()

    def give_back(self, lease: Lease, reason: ReleaseReason, detail: str) -> bool:
        """Training failed: the assignment is open again after a pause; False: it has failed."""
        release = Release(
            fencing=lease.fencing, reason=reason, detail=detail[:500], checkpoint=None
        )
        with self._ledger.begin() as connection:
            outcome = queries.release_lease(
                connection,
                lease.assignment,
                release,
                worker=lease.worker,
                max_attempts=self._max_attempts,
                now=self._now(),
            )
            after = queries.get_assignment(connection, lease.assignment)
        if isinstance(outcome, Refused):
            log.warning("%s was not given back: %s", lease.assignment, outcome.message)
        self._changed()
        return after.state is not AssignmentState.FAILED

    def _submit(
        self, lease: Lease, submission: Submission, manifest: CheckpointManifest
    ) -> tuple[str, ...]:
        now = self._now()
        with self._ledger.begin() as connection:
            outcome = queries.submit_expert(
                connection,
                lease.assignment,
                submission,
                worker=lease.worker,
                now=now,
                heartbeat_seconds=self._heartbeat_seconds,
            )
            if not isinstance(outcome, Refused):
                for row in queries.announced_checkpoints(connection):
                    if row.manifest == submission.manifest:
                        return queries.mark_durable(connection, row.checkpoint_id, manifest, now)
                return ()
        raise LeaseLost(outcome.message)

    def _changed(self) -> None:
        with self._lock:
            self.version += 1
