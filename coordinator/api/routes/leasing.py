"""The request for work: one offer at a time, the same answer to the same request."""

from fastapi import APIRouter
from sqlalchemy import Connection

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import (
    ApiContext,
    Context,
    Worker,
    answered_before,
    load_workload,
    remember_answer,
    see,
    unwrap,
)
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, Attempt, OfferTerms, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS, MAX_UNCOLLECTED, Assignment, Refused
from coordinator.scheduler import NoWork, choose
from coordinator.workload import candidates, counts, offerable, retry_seconds
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer, LeaseRequest, Offer, Parent

router = APIRouter(prefix="/v1/assignments", tags=["assignments"])

MAX_REASON = 500


@router.post("/lease")
def lease(context: Context, worker: Worker, request: LeaseRequest) -> LeaseAnswer:
    """Ask for work. A worker holds one lease at a time; an offer still open is repeated."""
    now = context.now()
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        outcome: LeaseAnswer | Refused | ApiError | None = answered_before(
            connection, worker, request, LeaseAnswer
        )
        if outcome is None:
            queries.expire_leases(connection, now)
            held = queries.live_lease_of(connection, worker.worker)
            outcome = (
                _offer_work(connection, context, worker, request, now)
                if held is None
                else _repeat_offer(connection, context, held, now)
            )
            if isinstance(outcome, LeaseAnswer):
                remember_answer(connection, worker, request, outcome, now)
    return unwrap(outcome)


def _offer_work(
    connection: Connection,
    context: ApiContext,
    worker: WorkerRow,
    request: LeaseRequest,
    now: float,
) -> LeaseAnswer | Refused:
    queries.set_asked(connection, worker.worker, now)
    queries.set_capability(connection, worker.worker, request.capability)
    if queries.get_run(connection).phase == "finished":
        return LeaseAnswer(
            offer=None, reason="the run is finished", retry_after_seconds=0.0, finished=True
        )
    uncollected = queries.count_uncollected(connection, worker.worker)
    if uncollected > MAX_UNCOLLECTED:
        return _wait(
            context, f"{uncollected} of your submissions wait to be collected: keep serving them"
        )
    load = load_workload(connection, context, now)
    open_work = offerable(load)
    if not open_work:
        return _wait(context, f"no assignment is open now ({counts(load)})")
    since = now if worker.waits_since is None else worker.waits_since
    choice = choose(
        open_work,
        candidates(load, trusted=context.settings.trusted),
        asking=worker.worker,
        now=now,
        waits_until=since + LEASE_INTERVALS * context.settings.heartbeat_seconds,
    )
    if isinstance(choice, NoWork):
        if choice.waits:
            queries.set_waits_since(connection, worker.worker, since)
        return _wait(context, choice.reason)
    terms = OfferTerms(
        assignment=choice.assignment,
        worker=worker.worker,
        free_memory_bytes=request.capability.free_memory_bytes,
        reason=choice.reason[:MAX_REASON],
    )
    standing = queries.offer_assignment(
        connection, terms, now=now, heartbeat_seconds=context.settings.heartbeat_seconds
    )
    if isinstance(standing, Refused):
        return standing
    queries.set_waits_since(connection, worker.worker, None)
    row = queries.get_assignment(connection, choice.assignment)
    return _answer(connection, context, row, terms.reason, now)


def _repeat_offer(
    connection: Connection, context: ApiContext, held: Attempt, now: float
) -> LeaseAnswer | ApiError:
    row = queries.get_assignment(connection, held.assignment)
    if row.state is not AssignmentState.OFFERED:
        left = _remaining(row.standing, now)
        return ApiError(
            ErrorCode.WRONG_STATE,
            f"you hold {held.assignment} under fencing {held.fencing}: go on with it, release "
            f"it, or ask again when it has run out",
            retry_after_seconds=left,
        )
    return _answer(connection, context, row, held.offer_reason, now)


def _answer(
    connection: Connection, context: ApiContext, row: AssignmentRow, reason: str, now: float
) -> LeaseAnswer:
    offer = Offer(
        assignment=row.assignment,
        fencing=row.standing.fencing,
        expires_in=_remaining(row.standing, now),
        spec=row.spec,
        shard=row.shard,
        parent=_parent(connection, row),
        resume=queries.take_resume(connection, row.assignment, row.standing.fencing),
        checkpoint_seconds=context.settings.checkpoint_seconds,
        reason=reason,
    )
    return LeaseAnswer(offer=offer, reason=reason, retry_after_seconds=0.0)


def _parent(connection: Connection, row: AssignmentRow) -> Parent | None:
    if row.spec.parent is None:
        return None
    held = queries.accepted(connection)[row.spec.parent]
    return Parent(shape=held.spec.shape, manifest=held.manifest)


def _remaining(standing: Assignment, now: float) -> float:
    return 0.0 if standing.expires_at is None else max(0.0, standing.expires_at - now)


def _wait(context: ApiContext, reason: str) -> LeaseAnswer:
    return LeaseAnswer(
        offer=None,
        reason=reason[:MAX_REASON],
        retry_after_seconds=retry_seconds(context.settings.heartbeat_seconds),
    )
