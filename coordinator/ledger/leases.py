"""Leases: load the assignment, ask the lifecycle, write the decision and its entry.

A refusal is a value, so that what was noted on the way (a spare submission) is committed with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, literal_column, select

from coordinator import lifecycle
from coordinator.ledger.assignments import (
    AssignmentRow,
    find_assignment,
    get_assignment,
    standing_row,
    store_expiry,
)
from coordinator.ledger.attempts import Attempt, ended, failed_by, find_attempt, handed_in
from coordinator.ledger.checkpoints import (
    Announcement,
    announced,
    keep_spare,
    resume_of,
    training_checkpoints,
)
from coordinator.ledger.collection import drop
from coordinator.ledger.devices import device_speed
from coordinator.ledger.ending import fail_assignment
from coordinator.ledger.entries import EntryKind, Row, added, changed, record
from coordinator.ledger.failing import TRAINER_FAILURES
from coordinator.ledger.prepared import Prepared, insert_into, update_by_key
from coordinator.ledger.tables import attempts, checkpoints, progress, receipts
from coordinator.lifecycle import Assignment, Holder, Refused
from coordinator.purposes import is_measurement
from protocol.blobs import BlobRef
from protocol.errors import ErrorCode
from protocol.manifests import CheckpointManifest
from protocol.messages import AssignmentHeartbeat, Release, ReleaseReason, Submission
from shared.sizing import step_flops
from shared.training.ends import spec_ending_at

_START = insert_into(
    progress,
    (
        "assignment",
        "fencing",
        "expires_at",
        "step",
        "tokens_per_second",
        "started_at",
        "progressed_at",
    ),
)
_EARNED = Prepared(
    select(receipts.c.entry)
    .where(receipts.c.worker == bindparam("worker"), receipts.c.credit > 0)
    .limit(1)
)
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
_SUBMITTED = Prepared(
    select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == bindparam("assignment"),
        checkpoints.c.fencing == bindparam("fencing"),
        checkpoints.c.manifest_digest == bindparam("manifest"),
        checkpoints.c.kind == "expert",
    )
)


@dataclass(frozen=True, kw_only=True)
class OfferTerms:
    """Which assignment goes to which device of which worker, why, and how much memory it had."""

    assignment: str
    worker: str
    free_memory_bytes: int
    reason: str
    device_number: int = 0


@dataclass(frozen=True)
class Offered:
    """An offer that was made: the assignment as it stands, and what training goes on from."""

    row: AssignmentRow
    standing: Assignment
    resume: CheckpointManifest | None


def offer_assignment(
    connection: Connection, terms: OfferTerms, *, now: float, heartbeat_seconds: float
) -> Offered | Refused:
    """Offer an open assignment to a device that holds no lease.

    Raises IntegrityError where it holds one, or where another device of the worker does and none of
    the worker's work was accepted yet.
    """
    row = get_assignment(connection, terms.assignment)
    after = lifecycle.offer(
        row.standing, worker=terms.worker, now=now, heartbeat_seconds=heartbeat_seconds
    )
    if isinstance(after, Refused):
        return after
    resume = resume_of(connection, terms.assignment, row.backup_of)
    attempt = added(
        attempts,
        assignment=after.assignment,
        fencing=after.fencing,
        worker=terms.worker,
        state="offered",
        device_number=terms.device_number,
        newcomer=int(not is_proven(connection, terms.worker)),
        free_memory_bytes=terms.free_memory_bytes,
        offer_reason=terms.reason,
        offered_at=now,
        resumed_from=resume.manifest.worker if resume else None,
        resumed_assignment=resume.assignment if resume else None,
        resumed_fencing=resume.fencing if resume else None,
        resumed_step=resume.manifest.step if resume else 0,
        reason="",
    )
    _record(connection, "offer", after, attempt, reason=terms.reason, now=now)
    _START.run(
        connection,
        assignment=after.assignment,
        fencing=after.fencing,
        expires_at=after.expires_at,
        step=0,
        tokens_per_second=0.0,
        started_at=now,
        progressed_at=now,
    )
    return Offered(row, after, resume.manifest if resume else None)


def is_proven(connection: Connection, worker: str) -> bool:
    """Whether some of a worker's work was accepted; on its own data that proves nothing."""
    return _EARNED.value(connection, worker=worker) is not None


def acknowledge_lease(
    connection: Connection,
    assignment: str,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """The worker starts; harmless when repeated."""
    row = find_assignment(connection, assignment)
    if row is None:
        return _unknown(assignment)
    after = _acknowledge(connection, row, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    return _explained(connection, assignment, holder, after)


def renew_lease(  # noqa: PLR0913 - who beats, what it said, and by what it is judged
    connection: Connection,
    assignment: str,
    beat: AssignmentHeartbeat,
    *,
    worker: str,
    flops_per_second: float,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """A heartbeat: progress is noted, a newly named checkpoint is to be collected.

    The first one acknowledges an offer. A trainer that stands still loses its lease in the end,
    however often its worker beats; `flops_per_second` is what its worker's first device measured,
    to judge the time before the first step; what another one measured, the ledger knows.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return _unknown(assignment)
    impossible = _impossible_step(beat.checkpoint_step, row.spec.train.num_steps)
    if impossible is not None:
        return impossible
    holder = Holder(worker=worker, fencing=beat.fencing)
    running = _acknowledge(connection, row, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(running, Refused):
        return _explained(connection, assignment, holder, running)
    attempt = find_attempt(connection, assignment, beat.fencing)
    assert attempt is not None, f"{assignment} has no attempt {beat.fencing}"
    attempt = _note_start(connection, row, attempt, beat.first_step, now)
    if attempt.device_number > 0:
        measured = device_speed(connection, worker, attempt.device_number)
        flops_per_second = flops_per_second if measured is None else measured
    advanced = attempt.step < beat.step <= row.spec.train.num_steps
    last = (beat.step, now) if advanced else (attempt.step, attempt.progressed_at)
    stalls_at = last[1] + lifecycle.stall_seconds(
        step_seconds=_step_seconds(attempt, row, last, flops_per_second),
        heartbeat_seconds=heartbeat_seconds,
        has_stepped=last[0] > attempt.resumed_step,
    )
    after = lifecycle.renew(
        running, holder, now=now, heartbeat_seconds=heartbeat_seconds, stalls_at=stalls_at
    )
    if isinstance(after, Refused):
        return after
    values = {"expires_at": after.expires_at, "step": last[0], "progressed_at": last[1]}
    values |= {"loss": beat.loss, "tokens_per_second": beat.tokens_per_second}
    _update_progress(connection, after, values)
    named = _named_training(connection, after, beat.checkpoint, beat.checkpoint_step, now)
    if named:
        record(connection, "announce", *named, facts=_facts(after), now=now)
    return after


def submit_expert(
    connection: Connection,
    assignment: str,
    submission: Submission,
    *,
    worker: str,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """The worker hands in its expert's manifest; harmless when repeated.

    Under an old fencing number of the same worker it is noted as a spare, and refused.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return _unknown(assignment)
    named = Announcement(
        assignment=assignment,
        worker=worker,
        fencing=submission.fencing,
        kind="expert",
        step=row.spec.train.num_steps,
        manifest=submission.manifest,
    )
    if _submitted_before(connection, named, row.standing):
        return row.standing
    holder = Holder(worker=worker, fencing=submission.fencing)
    after = lifecycle.submit(row.standing, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(after, Refused):
        attempt = find_attempt(connection, assignment, submission.fencing)
        if after.code is ErrorCode.LEASE_LOST and attempt and attempt.worker == worker:
            keep_spare(connection, named, now)
        return _explained(connection, assignment, holder, after)
    begun = find_attempt(connection, assignment, submission.fencing)
    if begun is not None:
        _note_start(connection, row, begun, submission.first_step, now)
    rows = [
        ended(
            assignment,
            after.fencing,
            state="submitted",
            reason="",
            now=now,
            peak_memory_bytes=submission.peak_memory_bytes,
        ),
        *announced(connection, named, now),
    ]
    _record(connection, "submit", after, *rows, reason="waiting to be collected", now=now)
    store_expiry(connection, after)
    values = {"step": named.step, "tokens_per_second": submission.tokens_per_second}
    values |= {"progressed_at": now}
    _update_progress(connection, after, values)
    return after


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
        return _unknown(assignment)
    impossible = _impossible_step(release.checkpoint_step, row.spec.train.num_steps)
    if impossible is not None:
        return impossible
    attempt = find_attempt(connection, assignment, release.fencing)
    if attempt is not None and attempt.worker == worker and attempt.state == "released":
        return row.standing
    holder = Holder(worker=worker, fencing=release.fencing)
    after = lifecycle.release(row.standing, holder, now=now)
    if isinstance(after, Refused):
        return _explained(connection, assignment, holder, after)
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
    rows += _named_training(
        connection, row.standing, release.checkpoint, release.checkpoint_step, now
    )
    suspicious = release.reason in _SUSPICIOUS
    if suspicious and attempt is not None and _is_built_on_sand(connection, attempt):
        assert attempt.resumed_from is not None
        after = lifecycle.exclude(after, attempt.resumed_from)
        # Their blobs go with the assignment's next checkpoint or its end.
        rows = rows[:1] + drop(connection, training_checkpoints(connection, assignment), now)
    words, who = f"released: {release.reason}", {"worker": worker, "detail": release.detail}
    _record(connection, "release", after, *rows, reason=words, now=now, **who)
    store_expiry(connection, after)
    _fail_if_broken(connection, assignment, release.reason, max_attempts=max_attempts, now=now)
    return after


def _acknowledge(
    connection: Connection,
    row: AssignmentRow,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    after = lifecycle.acknowledge(
        row.standing, holder, now=now, heartbeat_seconds=heartbeat_seconds
    )
    if isinstance(after, Refused) or after == row.standing:
        return after
    running = changed(attempts, assignment=after.assignment, fencing=after.fencing, state="running")
    _record(connection, "acknowledge", after, running, now=now)
    values = {"expires_at": after.expires_at, "started_at": now, "progressed_at": now}
    _update_progress(connection, after, values)
    return after


def _note_start(
    connection: Connection, row: AssignmentRow, attempt: Attempt, first_step: int | None, now: float
) -> Attempt:
    """The attempt, as its worker says that it began: later than the checkpoint of its offer.

    It went on from the end of a shorter training of the same curve that it handed in, where there
    is one of so many steps, whose steps were credited with that; else from an own checkpoint that
    the coordinator does not hold. Only what comes before any progress is heeded, and nothing that
    would take steps from the worker whose checkpoint was offered.
    """
    if first_step is None or not attempt.resumed_step < first_step <= row.spec.train.num_steps:
        return attempt
    if attempt.step > attempt.resumed_step or attempt.foreign_author is not None:
        return attempt
    values: dict[str, object] = {"resumed_step": first_step}
    if attempt.resumed_from is None:
        shorter = spec_ending_at(row.spec, first_step).digest
        is_shorter = first_step < row.spec.train.num_steps
        prefix = handed_in(connection, shorter, attempt.worker) if is_shorter else None
        values["resumed_from"] = attempt.worker
        if prefix is not None:
            values |= {"resumed_assignment": prefix[0], "resumed_fencing": prefix[1]}
    key = {"assignment": attempt.assignment, "fencing": attempt.fencing}
    written = changed(attempts, **key, **values)
    record(connection, "begin", written, facts={**key, "step": first_step}, now=now)
    return replace(attempt, resumed_from=attempt.worker, resumed_step=first_step)


def _step_seconds(
    attempt: Attempt, row: AssignmentRow, last: tuple[int, float], flops_per_second: float
) -> float:
    """Seconds a step: measured in this attempt, else expected of the worker's speed."""
    step, progressed_at = last
    if step > attempt.resumed_step:
        return (progressed_at - attempt.started_at) / (step - attempt.resumed_step)
    return step_flops(row.spec) / flops_per_second


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


def _explained(
    connection: Connection, assignment: str, holder: Holder, outcome: Assignment | Refused
) -> Assignment | Refused:
    """A refusal because the holder's lease has ended says why it did."""
    if not isinstance(outcome, Refused) or outcome.code is not ErrorCode.LEASE_LOST:
        return outcome
    attempt = find_attempt(connection, assignment, holder.fencing)
    if attempt is None or attempt.worker != holder.worker or not attempt.reason:
        return outcome
    why = f"it was {attempt.state}: {attempt.reason}"
    if attempt.state == attempt.reason:
        why = f"it {attempt.state}"
    return replace(outcome, message=f"{outcome.message} ({why})")


def _unknown(assignment: str) -> Refused:
    return Refused(ErrorCode.UNKNOWN_ASSIGNMENT, f"assignment {assignment}: there is none")


def _impossible_step(step: int, num_steps: int) -> Refused | None:
    if step <= num_steps:
        return None
    return Refused(ErrorCode.BAD_REQUEST, f"checkpoint_step: {step}, expected at most {num_steps}")


def _submitted_before(connection: Connection, named: Announcement, standing: Assignment) -> bool:
    if (standing.worker, standing.fencing) != (named.worker, named.fencing):
        return False
    found = _SUBMITTED.value(
        connection,
        assignment=named.assignment,
        fencing=named.fencing,
        manifest=named.manifest.digest,
    )
    return found is not None


def _named_training(
    connection: Connection, standing: Assignment, manifest: BlobRef | None, step: int, now: float
) -> list[Row]:
    if manifest is None or standing.worker is None:
        return []
    announcement = Announcement(
        assignment=standing.assignment,
        worker=standing.worker,
        fencing=standing.fencing,
        kind="training",
        step=step,
        manifest=manifest,
    )
    return announced(connection, announcement, now)


def _update_progress(
    connection: Connection, standing: Assignment, values: Mapping[str, object]
) -> None:
    new = {f"new_{name}": value for name, value in values.items()}
    update_by_key(progress, tuple(values)).run(
        connection, key_assignment=standing.assignment, key_fencing=standing.fencing, **new
    )


def _facts(standing: Assignment) -> dict[str, str | int | None]:
    return {
        "assignment": standing.assignment,
        "fencing": standing.fencing,
        "worker": standing.worker,
    }


def _record(
    connection: Connection,
    kind: EntryKind,
    after: Assignment,
    *rows: Row,
    now: float,
    reason: str | None = None,
    **others: str,
) -> None:
    facts = {**_facts(after), **others}
    written = standing_row(after, reason=reason, now=now)
    record(connection, kind, written, *rows, facts=facts, now=now)
