"""Leases that are given back, and what the reason says of the work and of its checkpoint."""

from sqlalchemy import Connection, bindparam, literal_column, select

from coordinator import lifecycle
from coordinator.ledger.assignments import find_assignment, get_assignment, store_expiry
from coordinator.ledger.attempts import Attempt, ended, failed_by, find_attempt
from coordinator.ledger.checkpoints import training_checkpoints
from coordinator.ledger.collection import drop
from coordinator.ledger.decisions import (
    explained,
    impossible_step,
    named_training,
    unknown,
    write_decision,
)
from coordinator.ledger.ending import fail_assignment
from coordinator.ledger.failing import TRAINER_FAILURES
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.tables import attempts, receipts
from coordinator.lifecycle import Assignment, Holder, Refused
from coordinator.purposes import is_measurement
from protocol.messages import Release, ReleaseReason

_SUSPICIOUS: tuple[ReleaseReason, ...] = ("trainer_failed", "diverged")
_FAILED_ON_IT = Prepared(
    select(attempts.c.worker)
    .where(
        attempts.c.assignment == bindparam("assignment"),
        attempts.c.resumed_from == bindparam("author"),
        attempts.c.worker.not_in((bindparam("author"), bindparam("worker"))),
        attempts.c.state == "released",
        attempts.c.reason.in_([literal_column(f"'{reason}'") for reason in _SUSPICIOUS]),
    )
    .limit(1)
)


def release_lease(
    connection: Connection,
    assignment: str,
    release: Release,
    *,
    worker: str,
    max_attempts: int,
    now: float,
) -> Assignment | Refused:
    """The worker gives its lease back, naming its newest checkpoint; harmless when repeated.

    Where training failed right from another worker's checkpoint on, or later and not for the first
    worker, that one is suspect: its author is excluded and the next attempt starts afresh. Numbers
    can be such that they ruin a training only after some steps. Where proven workers failed
    `max_attempts` times with the same typed error, the assignment has failed. What is there to be
    measured alone goes to trusted workers only: it has failed when it diverged `max_attempts`
    times, whoever saw it.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return unknown(assignment)
    impossible = impossible_step(release.checkpoint_step, row.spec.train.num_steps)
    if impossible is not None:
        return impossible
    attempt = find_attempt(connection, assignment, release.fencing)
    if attempt is not None and attempt.worker == worker and attempt.state == "released":
        return row.standing
    holder = Holder(worker=worker, fencing=release.fencing)
    after = lifecycle.release(row.standing, holder, now=now)
    if isinstance(after, Refused):
        return explained(connection, assignment, holder, after)
    peak = release.peak_memory_bytes if release.reason == "out_of_memory" else None
    rows = [
        ended(
            assignment,
            release.fencing,
            state="released",
            reason=release.reason,
            now=now,
            peak_memory_bytes=peak,
        )
    ]
    rows += named_training(
        connection, row.standing, release.checkpoint, release.checkpoint_step, now
    )
    suspicious = release.reason in _SUSPICIOUS
    if suspicious and attempt is not None and _is_built_on_sand(connection, attempt):
        assert attempt.resumed_from is not None
        after = lifecycle.exclude(after, attempt.resumed_from)
        # Their blobs go with the assignment's next checkpoint or its end.
        rows = rows[:1] + drop(connection, training_checkpoints(connection, assignment), now)
    words, who = f"released: {release.reason}", {"worker": worker, "detail": release.detail}
    write_decision(connection, "release", after, *rows, reason=words, now=now, **who)
    store_expiry(connection, after)
    _fail_if_broken(connection, assignment, release.reason, max_attempts=max_attempts, now=now)
    return after


def _is_built_on_sand(connection: Connection, attempt: Attempt) -> bool:
    """Whether an attempt that failed may have done so for another's checkpoint."""
    author = attempt.foreign_author
    if author is None or attempt.step <= attempt.resumed_step:
        return author is not None
    key = {"assignment": attempt.assignment, "author": author, "worker": attempt.worker}
    return _FAILED_ON_IT.value(connection, **key) is not None


def _fail_if_broken(
    connection: Connection,
    assignment: str,
    reason: ReleaseReason,
    *,
    max_attempts: int,
    now: float,
) -> None:
    if reason not in TRAINER_FAILURES:
        return
    workers = failed_by(connection, assignment, reason)
    row = get_assignment(connection, assignment)
    if reason == "diverged" and is_measurement(row.schemes):
        if len(workers) >= max_attempts:
            words = f"the training diverged in {len(workers)} attempts"
            fail_assignment(connection, row, reason=words, now=now)
        return
    earned = receipts.c.worker.in_(workers) & (receipts.c.credit > 0)
    query = select(receipts.c.worker).where(earned).distinct()
    proven = set(connection.execute(query).scalars())
    if lifecycle.is_broken(workers, proven=proven, max_attempts=max_attempts):
        row = get_assignment(connection, assignment)
        words = f"{len(workers)} attempts ended with {reason}, by proven workers too"
        fail_assignment(connection, row, reason=words, now=now)
