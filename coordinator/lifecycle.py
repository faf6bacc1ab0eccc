"""What happens to an assignment: each event to the next assignment or a refusal.

Pure: `now` is an argument. Every change of state goes through `protocol.assignments.TRANSITIONS`.
Who gets an assignment is decided in `coordinator.scheduling`, whether a submission is good in
`coordinator.scoring.verification`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from protocol.assignments import LIVE, TRANSITIONS, AssignmentEvent, AssignmentState
from protocol.errors import ErrorCode

OFFER_INTERVALS = 2
"""Heartbeat intervals that an offer waits to be acknowledged."""

LEASE_INTERVALS = 3
"""Heartbeat intervals that a lease lasts without being renewed."""

SUBMISSION_INTERVALS = 30
"""Heartbeat intervals that a submission which is not collected yet outlives its silent worker."""

COLLECT_INTERVALS = 60
MIN_COLLECT_SECONDS = 3600.0
"""A submission that was not collected within the longer of both is given up, however alive its
worker: a digest that nobody has must not hold an assignment for ever."""

MAX_UNCOLLECTED = 1
"""Submissions not collected yet with which a worker still gets work: the last one may be on its
way while the next is trained."""

STALL_INTERVALS = 30
STALL_STEPS = 50
FIRST_STEP_FACTOR = 4
"""A lease ends, heartbeats or not, when the trainer got no step further for the longer of so many
heartbeat intervals and so many of its own steps; before its first step (fetching, compiling) for
FIRST_STEP_FACTOR times that."""

MIN_FAILING_WORKERS = 2
"""Proven workers that must fail alike before the assignment itself is held to be broken."""

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where one piece of work stands.

    `fencing` is that of the newest offer (0 before the first). `worker` holds the lease or made the
    submission. `expires_at` is absolute, in seconds on the coordinator's clock; None when nothing
    runs out. A submission must be collected before `collect_by`. Nobody is offered the assignment
    before `not_before`, and `excluded` workers never; where it has an `owner`, that one alone is.
    """

    assignment: str
    state: AssignmentState = AssignmentState.OPEN
    fencing: int = 0
    worker: str | None = None
    expires_at: float | None = None
    collect_by: float | None = None
    not_before: float = 0.0
    num_returns: int = 0
    excluded: frozenset[str] = frozenset()
    owner: str | None = None


@dataclass(frozen=True)
class Refused:
    """Why an event does not apply: a code for programs, words for people."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who acts on a lease: the worker, and the fencing number that its offer named."""

    worker: str
    fencing: int


def backoff_seconds(num_returns: int) -> float:
    """Pause before the next offer of an assignment that came back `num_returns` times (from 1)."""
    doublings = min(num_returns - 1, 16)
    return min(FIRST_BACKOFF_SECONDS * 2.0**doublings, MAX_BACKOFF_SECONDS)


def offer(
    assignment: Assignment, *, worker: str, now: float, heartbeat_seconds: float
) -> Assignment | Refused:
    """Offer an open assignment to `worker`; the fencing number grows by one."""
    state = _next_state(assignment, AssignmentEvent.OFFER)
    if isinstance(state, Refused):
        return state
    if now < assignment.not_before:
        wait = assignment.not_before - now
        return Refused(
            ErrorCode.WRONG_STATE, f"{assignment.assignment} is offered again in {wait:.1f} s"
        )
    if assignment.owner not in (None, worker):
        return Refused(
            ErrorCode.FORBIDDEN, f"{assignment.assignment} is on the own data of another worker"
        )
    if worker in assignment.excluded:
        return Refused(
            ErrorCode.FORBIDDEN,
            f"{assignment.assignment}: a submission of {worker} was not accepted before",
        )
    return replace(
        assignment,
        state=state,
        fencing=assignment.fencing + 1,
        worker=worker,
        expires_at=now + OFFER_INTERVALS * heartbeat_seconds,
    )


def acknowledge(
    assignment: Assignment, holder: Holder, *, now: float, heartbeat_seconds: float
) -> Assignment | Refused:
    """The worker starts. Acknowledging a lease that runs already changes nothing."""
    lost = _lost(assignment, holder, now)
    if lost is not None:
        return lost
    if assignment.state is AssignmentState.RUNNING:
        return assignment
    return _go(assignment, AssignmentEvent.ACKNOWLEDGE, now + LEASE_INTERVALS * heartbeat_seconds)


def renew(
    assignment: Assignment,
    holder: Holder,
    *,
    now: float,
    heartbeat_seconds: float,
    stalls_at: float = math.inf,
) -> Assignment | Refused:
    """A heartbeat prolongs a running lease, at most to `stalls_at`. A late one revives nothing."""
    lost = _lost(assignment, holder, now)
    if lost is not None:
        return lost
    until = min(now + LEASE_INTERVALS * heartbeat_seconds, stalls_at)
    return _go(assignment, AssignmentEvent.RENEW, until)


def stall_seconds(*, step_seconds: float, heartbeat_seconds: float, has_stepped: bool) -> float:
    """How long a trainer may stand at one step, given what a step takes it, or is expected to."""
    allowed = max(STALL_INTERVALS * heartbeat_seconds, STALL_STEPS * step_seconds)
    return allowed if has_stepped else FIRST_STEP_FACTOR * allowed


def submit(
    assignment: Assignment, holder: Holder, *, now: float, heartbeat_seconds: float
) -> Assignment | Refused:
    """The worker names its finished expert. With an old fencing number: a spare, LEASE_LOST."""
    lost = _lost(assignment, holder, now)
    if lost is not None:
        return lost
    after = _go(assignment, AssignmentEvent.SUBMIT, now + SUBMISSION_INTERVALS * heartbeat_seconds)
    if isinstance(after, Refused):
        return after
    limit = max(COLLECT_INTERVALS * heartbeat_seconds, MIN_COLLECT_SECONDS)
    return replace(after, collect_by=now + limit)


def keep_submission(
    assignment: Assignment, *, worker: str, now: float, heartbeat_seconds: float
) -> Assignment:
    """A sign of life of its worker prolongs the wait for an uncollected submission to the limit."""
    waits = assignment.state is AssignmentState.SUBMITTED and assignment.expires_at is not None
    if not waits or assignment.worker != worker:
        return assignment
    until = now + SUBMISSION_INTERVALS * heartbeat_seconds
    if assignment.collect_by is not None:
        until = min(until, assignment.collect_by)
    return replace(assignment, expires_at=until)


def collected(assignment: Assignment, *, fencing: int) -> Assignment | Refused:
    """The coordinator holds the submitted files: the submission no longer runs out."""
    wrong = _not_submitted(assignment, fencing)
    return wrong if wrong is not None else replace(assignment, expires_at=None, collect_by=None)


def accept(assignment: Assignment, *, fencing: int) -> Assignment | Refused:
    """The submission under `fencing` is canonical from now on."""
    wrong = _not_submitted(assignment, fencing)
    return wrong if wrong is not None else _go(assignment, AssignmentEvent.ACCEPT, None)


def reject(
    assignment: Assignment, *, fencing: int, now: float, author: str | None = None
) -> Assignment | Refused:
    """Open again, and never for this worker: the same machine would give the same bits.

    Built on the checkpoint of another worker, its `author`, that one is excluded instead: nobody
    can tell whose bits were bad, and the submitter is judged by its own when it starts afresh.
    """
    wrong = _not_submitted(assignment, fencing)
    if wrong is not None:
        return wrong
    blamed = author or assignment.worker
    without = assignment if blamed is None else exclude(assignment, blamed)
    return _reopen(without, AssignmentEvent.REJECT, now)


def exclude(assignment: Assignment, worker: str) -> Assignment:
    """Never again for this worker."""
    return replace(assignment, excluded=assignment.excluded | {worker})


def release(assignment: Assignment, holder: Holder, *, now: float) -> Assignment | Refused:
    """The worker gives its lease back."""
    lost = _lost(assignment, holder, now)
    if lost is not None:
        return lost
    return _reopen(assignment, AssignmentEvent.RELEASE, now)


def fail(assignment: Assignment) -> Assignment | Refused:
    """Nobody can do it; only the operator's `retry` opens it again."""
    return _end(assignment, AssignmentEvent.FAIL)


def cancel(assignment: Assignment) -> Assignment | Refused:
    """It is not needed any more; its holder's lease is lost."""
    return _end(assignment, AssignmentEvent.CANCEL)


def retry(assignment: Assignment) -> Assignment | Refused:
    """The operator opens it again, at once and for everybody."""
    state = _next_state(assignment, AssignmentEvent.RETRY)
    if isinstance(state, Refused):
        return state
    return replace(
        assignment, state=state, worker=None, not_before=0.0, num_returns=0, excluded=frozenset()
    )


def is_broken(failed_by: Sequence[str], *, proven: Collection[str], max_attempts: int) -> bool:
    """Whether the assignment itself is at fault and not its workers.

    `failed_by` are the workers of its attempts that failed with one typed error. Only those with an
    accepted submission count, and at least MIN_FAILING_WORKERS of them must agree: one broken or
    hostile machine proves nothing.
    """
    counted = [worker for worker in failed_by if worker in proven]
    return len(counted) >= max_attempts and len(set(counted)) >= MIN_FAILING_WORKERS


def expired(assignment: Assignment, now: float) -> bool:
    """Whether a lease, an offer or a wait for a submission has run out."""
    return assignment.expires_at is not None and assignment.expires_at <= now


def expire(assignment: Assignment, *, now: float) -> Assignment | Refused:
    """Open again after its time ran out; refused while there is time left.

    A worker that lived on and still never delivered its submission does not get it again.
    """
    if not expired(assignment, now):
        return Refused(ErrorCode.WRONG_STATE, f"{assignment.assignment} has not run out")
    if assignment.collect_by is not None and assignment.collect_by <= now and assignment.worker:
        assignment = exclude(assignment, assignment.worker)
    return _reopen(assignment, AssignmentEvent.EXPIRE, now)


def extend(assignment: Assignment, seconds: float) -> Assignment:
    """Shift the expiry: time in which the coordinator did not listen counts against nobody."""
    if assignment.expires_at is None:
        return assignment
    collect_by = None if assignment.collect_by is None else assignment.collect_by + seconds
    return replace(assignment, expires_at=assignment.expires_at + seconds, collect_by=collect_by)


def _next_state(assignment: Assignment, event: AssignmentEvent) -> AssignmentState | Refused:
    state = TRANSITIONS.get((assignment.state, event))
    if state is None:
        return Refused(
            ErrorCode.WRONG_STATE,
            f"{assignment.assignment} is {assignment.state}: cannot {event}",
        )
    return state


def _go(
    assignment: Assignment, event: AssignmentEvent, expires_at: float | None
) -> Assignment | Refused:
    state = _next_state(assignment, event)
    if isinstance(state, Refused):
        return state
    return replace(assignment, state=state, expires_at=expires_at, collect_by=None)


def _end(assignment: Assignment, event: AssignmentEvent) -> Assignment | Refused:
    state = _next_state(assignment, event)
    if isinstance(state, Refused):
        return state
    return replace(assignment, state=state, worker=None, expires_at=None, collect_by=None)


def _reopen(assignment: Assignment, event: AssignmentEvent, now: float) -> Assignment | Refused:
    state = _next_state(assignment, event)
    if isinstance(state, Refused):
        return state
    num_returns = assignment.num_returns + 1
    return replace(
        assignment,
        state=state,
        worker=None,
        expires_at=None,
        collect_by=None,
        num_returns=num_returns,
        not_before=now + backoff_seconds(num_returns),
    )


def _lost(assignment: Assignment, holder: Holder, now: float) -> Refused | None:
    same = assignment.worker == holder.worker and assignment.fencing == holder.fencing
    if same and assignment.state not in LIVE:
        return Refused(
            ErrorCode.WRONG_STATE, f"{assignment.assignment} is {assignment.state} already"
        )
    if not same or expired(assignment, now):
        return Refused(
            ErrorCode.LEASE_LOST,
            f"{assignment.assignment}: lease {holder.fencing} has ended, "
            f"the newest is {assignment.fencing}; ask for work again",
        )
    return None


def _not_submitted(assignment: Assignment, fencing: int) -> Refused | None:
    if assignment.state is not AssignmentState.SUBMITTED or assignment.fencing != fencing:
        return Refused(
            ErrorCode.WRONG_STATE,
            f"{assignment.assignment} is {assignment.state} under fencing {assignment.fencing}: "
            f"expected submitted under {fencing}",
        )
    return None
