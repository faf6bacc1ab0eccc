"""Leases: load the assignment, ask the lifecycle, write the decision and its entry.

A refusal is a value, so that what was noted on the way (a spare submission) is committed with it.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Update, select, update

from coordinator import lifecycle
from coordinator.ledger.assignments import (
    Attempt,
    end_attempt,
    find_assignment,
    find_attempt,
    get_assignment,
    store_standing,
)
from coordinator.ledger.checkpoints import (
    Announcement,
    announce,
    discard_training,
    give_up_training,
    keep_spare,
    resume_manifest,
)
from coordinator.ledger.entries import EntryKind, append
from coordinator.ledger.run import beat_role, role_beats
from coordinator.ledger.tables import LIVE_ATTEMPTS, assignments, attempts, checkpoints
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.errors import ErrorCode
from protocol.manifests import CheckpointManifest
from protocol.messages import AssignmentHeartbeat, Release, Submission


@dataclass(frozen=True, kw_only=True)
class OfferTerms:
    """Which assignment goes to which worker, why, and how much memory the worker had for it."""

    assignment: str
    worker: str
    free_memory_bytes: int
    reason: str


def offer_assignment(
    connection: Connection, terms: OfferTerms, *, now: float, heartbeat_seconds: float
) -> Assignment | Refused:
    """Offer an open assignment to a worker that holds no lease."""
    standing = get_assignment(connection, terms.assignment).standing
    after = lifecycle.offer(
        standing, worker=terms.worker, now=now, heartbeat_seconds=heartbeat_seconds
    )
    if isinstance(after, Refused):
        return after
    connection.execute(
        attempts.insert().values(
            assignment=after.assignment,
            fencing=after.fencing,
            worker=terms.worker,
            state="offered",
            free_memory_bytes=terms.free_memory_bytes,
            offer_reason=terms.reason,
            offered_at=now,
            step=0,
            tokens_per_second=0.0,
            progressed_at=now,
            reason="",
        )
    )
    store_standing(connection, after, reason=terms.reason, now=now)
    _record(connection, "offer", after, now, reason=terms.reason)
    return after


def take_resume(connection: Connection, assignment: str, fencing: int) -> CheckpointManifest | None:
    """The checkpoint that this attempt goes on from, which is noted with its author."""
    manifest = resume_manifest(connection, assignment)
    if manifest is not None:
        connection.execute(
            update(attempts)
            .where(attempts.c.assignment == assignment, attempts.c.fencing == fencing)
            .values(resumed_from=manifest.worker, resumed_step=manifest.step)
        )
    return manifest


def acknowledge_lease(
    connection: Connection,
    assignment: str,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """The worker starts; harmless when repeated."""
    standing = _find(connection, assignment)
    if isinstance(standing, Refused):
        return standing
    after = lifecycle.acknowledge(standing, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(after, Refused) or after == standing:
        return after
    connection.execute(_attempt_update(after).values(state="running", progressed_at=now))
    store_standing(connection, after, now=now)
    _record(connection, "acknowledge", after, now)
    return after


def renew_lease(
    connection: Connection,
    assignment: str,
    beat: AssignmentHeartbeat,
    *,
    worker: str,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """A heartbeat: progress is noted, a newly named checkpoint is to be collected. No entry."""
    row = find_assignment(connection, assignment)
    if row is None:
        return _unknown(assignment)
    standing, num_steps = row.standing, row.spec.train.num_steps
    impossible = _impossible_step(beat.checkpoint_step, num_steps)
    if impossible is not None:
        return impossible
    holder = Holder(worker=worker, fencing=beat.fencing)
    after = lifecycle.renew(standing, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(after, Refused):
        return after
    store_standing(connection, after, now=now)
    progress: dict[str, object] = {
        "loss": beat.loss,
        "tokens_per_second": beat.tokens_per_second,
    }
    before = find_attempt(connection, assignment, beat.fencing)
    if before is not None and before.step < beat.step <= num_steps:
        progress |= {"step": beat.step, "progressed_at": now}
    connection.execute(_attempt_update(after).values(**progress))
    _announce_training(connection, after, beat.checkpoint, beat.checkpoint_step, now)
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
        return after
    announce(connection, named, now)
    end_attempt(connection, assignment, after.fencing, state="submitted", reason="", now=now)
    connection.execute(
        _attempt_update(after).values(
            step=named.step, tokens_per_second=submission.tokens_per_second, progressed_at=now
        )
    )
    store_standing(connection, after, reason="waiting to be collected", now=now)
    _record(connection, "submit", after, now, manifest=submission.manifest.digest)
    return after


def release_lease(
    connection: Connection, assignment: str, release: Release, *, worker: str, now: float
) -> Assignment | Refused:
    """The worker gives its lease back, naming its newest checkpoint; harmless when repeated.

    Where training failed right from another worker's checkpoint on, that one is suspect: its author
    is excluded and the next attempt starts afresh.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return _unknown(assignment)
    standing = row.standing
    impossible = _impossible_step(release.checkpoint_step, row.spec.train.num_steps)
    if impossible is not None:
        return impossible
    attempt = find_attempt(connection, assignment, release.fencing)
    if attempt is not None and attempt.worker == worker and attempt.state == "released":
        return standing
    holder = Holder(worker=worker, fencing=release.fencing)
    after = lifecycle.release(standing, holder, now=now)
    if isinstance(after, Refused):
        return after
    _announce_training(connection, standing, release.checkpoint, release.checkpoint_step, now)
    if (
        release.reason == "trainer_failed"
        and attempt is not None
        and attempt.foreign_author is not None
        and attempt.step <= attempt.resumed_step
    ):
        after = lifecycle.exclude(after, attempt.foreign_author)
        # Their blobs go with the assignment's next checkpoint or its end.
        discard_training(connection, assignment, now)
    end_attempt(
        connection,
        assignment,
        release.fencing,
        state="released",
        reason=release.reason,
        now=now,
    )
    store_standing(connection, after, reason=f"released: {release.reason}", now=now)
    _record(connection, "release", standing, now, reason=release.reason, detail=release.detail)
    return after


def count_uncollected(connection: Connection, worker: str) -> int:
    """How many submissions of a worker wait to be collected."""
    return len(_uncollected(connection, worker))


def keep_submissions(
    connection: Connection, worker: str, *, now: float, heartbeat_seconds: float
) -> None:
    """A worker that lives keeps the submissions that nobody collected from it yet."""
    for assignment in _uncollected(connection, worker):
        standing = get_assignment(connection, assignment).standing
        after = lifecycle.keep_submission(
            standing, worker=worker, now=now, heartbeat_seconds=heartbeat_seconds
        )
        store_standing(connection, after, now=now)


def expire_leases(connection: Connection, now: float) -> tuple[Assignment, ...]:
    """Offers, leases and submissions whose time ran out: open again. Returns them as they were.

    Training checkpoints that nobody could collect are given up too.
    """
    give_up_training(connection, now)
    due = select(assignments.c.assignment).where(assignments.c.expires_at <= now)
    expired = []
    for assignment in list(connection.execute(due).scalars()):
        standing = get_assignment(connection, assignment).standing
        after = lifecycle.expire(standing, now=now)
        if isinstance(after, Refused):
            continue
        end_attempt(
            connection, assignment, standing.fencing, state="expired", reason="expired", now=now
        )
        connection.execute(
            update(checkpoints)
            .where(
                checkpoints.c.assignment == assignment,
                checkpoints.c.kind == "expert",
                checkpoints.c.state == "announced",
            )
            .values(state="superseded", decided_at=now)
        )
        store_standing(connection, after, reason=f"{standing.state} ran out", now=now)
        _record(connection, "expire", standing, now, state=standing.state.value)
        expired.append(standing)
    return tuple(expired)


def extend_leases(connection: Connection, seconds: float) -> int:
    """Shift every expiry by `seconds`; returns how many."""
    waiting = assignments.c.expires_at.is_not(None)
    return connection.execute(
        update(assignments)
        .where(waiting)
        .values(
            expires_at=assignments.c.expires_at + seconds,
            collect_by=assignments.c.collect_by + seconds,
        )
    ).rowcount


def forgive_downtime(connection: Connection, *, now: float, tolerance_seconds: float) -> float:
    """Extend every lease by the time in which the api did not listen; returns that time.

    A gap between signs of life of at most `tolerance_seconds` is normal and forgives nothing. The
    api calls this before it judges any lease, so that neither a restart nor a pause costs one.
    """
    last = role_beats(connection).get("api")
    gap = 0.0 if last is None else now - last
    if gap <= tolerance_seconds:
        return 0.0
    extend_leases(connection, gap)
    beat_role(connection, "api", now)
    return gap


def live_lease_of(connection: Connection, worker: str) -> Attempt | None:
    """The lease or offer that a worker holds."""
    query = select(attempts.c.assignment, attempts.c.fencing).where(
        attempts.c.worker == worker, attempts.c.state.in_(LIVE_ATTEMPTS)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else find_attempt(connection, row.assignment, row.fencing)


def _uncollected(connection: Connection, worker: str) -> list[str]:
    waiting = select(assignments.c.assignment).where(
        assignments.c.worker == worker,
        assignments.c.state == AssignmentState.SUBMITTED.value,
        assignments.c.expires_at.is_not(None),
    )
    return list(connection.execute(waiting).scalars())


def _find(connection: Connection, assignment: str) -> Assignment | Refused:
    row = find_assignment(connection, assignment)
    return _unknown(assignment) if row is None else row.standing


def _unknown(assignment: str) -> Refused:
    return Refused(ErrorCode.UNKNOWN_ASSIGNMENT, f"assignment {assignment}: there is none")


def _impossible_step(step: int, num_steps: int) -> Refused | None:
    if step <= num_steps:
        return None
    return Refused(ErrorCode.BAD_REQUEST, f"checkpoint_step: {step}, expected at most {num_steps}")


def _submitted_before(connection: Connection, named: Announcement, standing: Assignment) -> bool:
    if (standing.worker, standing.fencing) != (named.worker, named.fencing):
        return False
    query = select(checkpoints.c.checkpoint_id).where(
        checkpoints.c.assignment == named.assignment,
        checkpoints.c.fencing == named.fencing,
        checkpoints.c.manifest_digest == named.manifest.digest,
        checkpoints.c.kind == "expert",
    )
    return connection.execute(query).first() is not None


def _announce_training(
    connection: Connection, standing: Assignment, manifest: BlobRef | None, step: int, now: float
) -> None:
    if manifest is None or standing.worker is None:
        return
    announcement = Announcement(
        assignment=standing.assignment,
        worker=standing.worker,
        fencing=standing.fencing,
        kind="training",
        step=step,
        manifest=manifest,
    )
    announce(connection, announcement, now)


def _attempt_update(standing: Assignment) -> Update:
    return update(attempts).where(
        attempts.c.assignment == standing.assignment, attempts.c.fencing == standing.fencing
    )


def _record(
    connection: Connection, kind: EntryKind, standing: Assignment, now: float, **facts: str
) -> None:
    known = {
        "assignment": standing.assignment,
        "fencing": standing.fencing,
        "worker": standing.worker,
    }
    append(connection, kind, facts={**known, **facts}, now=now)
