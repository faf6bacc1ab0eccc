"""The request for work: one offer at a time, the same answer to the same request."""

from fastapi import APIRouter

from coordinator.api.admission import busy_answer, is_full
from coordinator.api.errors import ApiError
from coordinator.api.routes.context import Call, Context, Said, Worker
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, Attempt, OfferTerms
from coordinator.lifecycle import MAX_UNCOLLECTED, Assignment, Refused, expired
from coordinator.scheduling import Backup, NoWork
from coordinator.workload import retry_seconds
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.manifests import CheckpointManifest
from protocol.messages import LeaseAnswer, LeaseRequest, Offer, Parent

router = APIRouter(prefix="/v1/assignments", tags=["assignments"])

MAX_REASON = 500


@router.post("/lease")
async def lease(context: Context, worker: Worker, request: LeaseRequest) -> LeaseAnswer:
    """Ask for work. A worker holds one lease at a time; an offer still open is repeated."""
    if is_full(context):
        return busy_answer(context)

    def write(call: Call) -> LeaseAnswer | Refused | ApiError:
        answer = call.answered_before(request, LeaseAnswer)
        if answer is not None:
            return answer
        try:
            outcome = _lease(call, request)
        except Exception:
            # What this call wrote is undone; the index may have followed it already.
            call.context.fleet.reset()
            raise
        if isinstance(outcome, LeaseAnswer):
            call.remember(request, outcome)
        return outcome

    said = Said(capability=request.capability, cached=request.cached)
    return await worker.write(write, said=said, urgent=False)


def _lease(call: Call, request: LeaseRequest) -> LeaseAnswer | Refused | ApiError:
    held = queries.live_lease_of(call.connection, call.worker.worker)
    if held is None:
        return _offer_work(call, request)
    row = queries.get_assignment(call.connection, held.assignment)
    if expired(row.standing, call.now):
        queries.expire_leases(call.connection, call.now)
        return _offer_work(call, request)
    return _repeat_offer(call, held, row)


def _offer_work(call: Call, request: LeaseRequest) -> LeaseAnswer | Refused:
    connection, worker = call.connection, call.worker.worker
    run = queries.get_run(connection)
    if run.phase == "finished":
        return LeaseAnswer(
            offer=None, reason="the run is finished", retry_after_seconds=0.0, finished=True
        )
    if run.paused:
        queries.set_asked(connection, worker, call.now)
        return _wait(call, "the operator paused the run")
    uncollected = queries.count_uncollected(connection, worker)
    if uncollected > MAX_UNCOLLECTED:
        queries.set_asked(connection, worker, call.now)
        return _wait(
            call, f"{uncollected} of your submissions wait to be collected: keep serving them"
        )
    asking = call.asking(request)
    call.context.fleet.follow(connection, call.now)
    choice = call.context.fleet.choose(asking, now=call.now, waits_since=asking.waits_since)
    if isinstance(choice, NoWork):
        since = (asking.waits_since or call.now) if choice.waits else asking.waits_since
        queries.set_asked(connection, worker, call.now, waits_since=since)
        return _wait(call, choice.reason)
    queries.set_asked(connection, worker, call.now)
    assignment = _make_backup(call, choice) if isinstance(choice, Backup) else choice.assignment
    if assignment is None:
        return _wait(call, "a backup of the last work waits for verification")
    terms = OfferTerms(
        assignment=assignment,
        worker=worker,
        free_memory_bytes=request.capability.free_memory_bytes,
        reason=choice.reason[:MAX_REASON],
    )
    offered = queries.offer_assignment(
        connection, terms, now=call.now, heartbeat_seconds=call.context.settings.heartbeat_seconds
    )
    if isinstance(offered, Refused):
        return offered
    return _answer(call, offered.row, offered.standing, offered.resume, terms.reason)


def _make_backup(call: Call, choice: Backup) -> str | None:
    """A new backup in the place of one that is too slow as well, or that nobody does.

    None where the one there is has been handed in.
    """
    original = queries.get_assignment(call.connection, choice.of)
    twins = queries.live_twins(call.connection, original)
    if any(twin.state is AssignmentState.SUBMITTED for twin in twins):
        return None
    for twin in twins:
        words = "another worker is expected to finish it sooner"
        queries.cancel_assignment(call.connection, twin, reason=words, now=call.now)
    return queries.add_backup(call.connection, original, now=call.now)


def _repeat_offer(call: Call, held: Attempt, row: AssignmentRow) -> LeaseAnswer | ApiError:
    if row.state is not AssignmentState.OFFERED:
        return ApiError(
            ErrorCode.WRONG_STATE,
            f"you hold {held.assignment} under fencing {held.fencing}: go on with it, release "
            f"it, or ask again when it has run out",
            retry_after_seconds=_remaining(row.standing, call.now),
        )
    resume = queries.resume_of(call.connection, row.assignment, row.backup_of)
    manifest = None if resume is None else resume.manifest
    return _answer(call, row, row.standing, manifest, held.offer_reason)


def _answer(
    call: Call,
    row: AssignmentRow,
    standing: Assignment,
    resume: CheckpointManifest | None,
    reason: str,
) -> LeaseAnswer:
    offer = Offer(
        assignment=standing.assignment,
        fencing=standing.fencing,
        expires_in=_remaining(standing, call.now),
        spec=row.spec,
        shard=row.shard,
        parent=_parent(call, row),
        resume=resume,
        checkpoint_seconds=call.context.settings.checkpoint_seconds,
        reason=reason,
    )
    return LeaseAnswer(offer=offer, reason=reason, retry_after_seconds=0.0)


def _parent(call: Call, row: AssignmentRow) -> Parent | None:
    if row.spec.parent is None:
        return None
    held = queries.accepted_of(call.connection, row.spec.parent)
    assert held is not None, f"{row.assignment} was offered before its parent was accepted"
    return Parent(shape=held.spec.shape, manifest=held.manifest)


def _remaining(standing: Assignment, now: float) -> float:
    return 0.0 if standing.expires_at is None else max(0.0, standing.expires_at - now)


def _wait(call: Call, reason: str) -> LeaseAnswer:
    return LeaseAnswer(
        offer=None,
        reason=reason[:MAX_REASON],
        retry_after_seconds=retry_seconds(call.context.settings.heartbeat_seconds),
    )
