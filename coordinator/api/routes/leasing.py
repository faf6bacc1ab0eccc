"""The request for work: one offer at a time, the same answer to the same request."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter
from sqlalchemy import Connection

from coordinator.api.admission import busy_answer, is_full
from coordinator.api.errors import ApiError
from coordinator.api.routes.context import Call, Context, Said, Worker
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, Attempt, OfferTerms, RunRow
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
    """Ask for work. A device holds one lease at a time; an offer still open is repeated.

    A worker none of whose work was accepted yet holds one lease at a time with all of its devices.
    """
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

    # What the worker itself is known by is its first device.
    is_first = request.device_number == 0
    said = Said(capability=request.capability if is_first else None, cached=request.cached)
    return await worker.write(write, said=said, urgent=False)


def _lease(call: Call, request: LeaseRequest) -> LeaseAnswer | Refused | ApiError:
    connection, worker, number = call.connection, call.worker.worker, request.device_number
    if number > 0:
        queries.see_device(connection, worker, number, request.capability)
    leases = queries.live_leases_of(connection, worker)
    if any(_ran_out(call, held) for held in leases):
        queries.expire_leases(connection, call.now)
        leases = queries.live_leases_of(connection, worker)
    for held in leases:
        if held.device_number == number:
            return _repeat_offer(call, held, queries.get_assignment(connection, held.assignment))
    return _offer_work(call, request, leases)


def _ran_out(call: Call, held: Attempt) -> bool:
    return expired(queries.get_assignment(call.connection, held.assignment).standing, call.now)


def _offer_work(
    call: Call, request: LeaseRequest, others: tuple[Attempt, ...]
) -> LeaseAnswer | Refused:
    """`others` are the leases of the worker's other devices."""
    connection, worker, number = call.connection, call.worker.worker, request.device_number
    run = queries.get_run(connection)
    has_own_work = run.phase == "finished" and _has_own_work(call, request)
    if run.phase == "finished" and not has_own_work:
        return LeaseAnswer(
            offer=None, reason="the run is finished", retry_after_seconds=0.0, finished=True
        )
    burden = burden_of(connection, worker, number, others)
    blocker = find_blocker(run, burden, has_own_work=has_own_work)
    if blocker:
        queries.set_asked(connection, worker, call.now, device_number=number)
        return _wait(call, blocker)
    asking = call.asking(request)
    call.context.fleet.follow(connection, call.now)
    choice = call.context.fleet.choose(asking, now=call.now, waits_since=asking.waits_since)
    if isinstance(choice, NoWork):
        since = (asking.waits_since or call.now) if choice.waits else asking.waits_since
        queries.set_asked(connection, worker, call.now, waits_since=since, device_number=number)
        return _wait(call, choice.reason)
    queries.set_asked(connection, worker, call.now, device_number=number)
    assignment = _make_backup(call, choice) if isinstance(choice, Backup) else choice.assignment
    if assignment is None:
        return _wait(call, "a backup of the last work waits for verification")
    terms = OfferTerms(
        assignment=assignment,
        worker=worker,
        free_memory_bytes=request.capability.free_memory_bytes,
        reason=choice.reason[:MAX_REASON],
        device_number=number,
    )
    offered = queries.offer_assignment(
        connection, terms, now=call.now, heartbeat_seconds=call.context.settings.heartbeat_seconds
    )
    if isinstance(offered, Refused):
        return offered
    return _answer(call, offered.row, offered.standing, offered.resume, terms.reason)


@dataclass(frozen=True)
class Burden:
    """What counts against a device that asks for work: `others` are assignments that the worker's
    other devices hold, `uncollected` how many submissions nobody has fetched yet. `is_proven`: some
    of the worker's work was accepted."""

    others: tuple[str, ...]
    uncollected: int
    is_proven: bool


def burden_of(
    connection: Connection, worker: str, device_number: int, leases: Iterable[Attempt]
) -> Burden:
    """What counts against a device of a worker that holds these leases."""
    is_proven = queries.is_proven(connection, worker)
    return Burden(
        tuple(one.assignment for one in leases if one.device_number != device_number),
        queries.count_uncollected(connection, worker, device_number if is_proven else None),
        is_proven,
    )


def find_blocker(run: RunRow, burden: Burden, *, has_own_work: bool) -> str:
    """What keeps a device from more work, whatever the scheduler thinks; empty: nothing. Pure.

    In words for the worker. Decides for requests, and for looks at what a request would get.
    `has_own_work`: work on the worker's own data is open, for which a finished run still has time.
    """
    if run.phase == "finished" and not has_own_work:
        return "the run is finished"
    if run.paused:
        return "the operator paused the run"
    if burden.others and not burden.is_proven:
        return (
            f"another of your devices holds {burden.others[0]}: a worker none of whose work "
            "was accepted yet holds one lease at a time"
        )
    if burden.uncollected > MAX_UNCOLLECTED:
        return f"{burden.uncollected} of your submissions wait to be collected: keep serving them"
    return ""


def uncollected_of(connection: Connection, worker: str, device_number: int) -> int:
    """Submissions that count against a device: its own, or all of a newcomer's."""
    return burden_of(connection, worker, device_number, ()).uncollected


def _has_own_work(call: Call, request: LeaseRequest) -> bool:
    """A run does not wait for experts on own data; their workers may still finish them."""
    call.context.fleet.follow(call.connection, call.now)
    return call.context.fleet.has_own_work(call.asking(request), now=call.now)


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
        parent=parent_of(call.connection, row),
        resume=resume,
        checkpoint_seconds=call.context.settings.checkpoint_seconds,
        reason=reason,
    )
    return LeaseAnswer(offer=offer, reason=reason, retry_after_seconds=0.0)


def parent_of(connection: Connection, row: AssignmentRow) -> Parent | None:
    """The accepted checkpoint that an assignment starts from; None: it starts from nothing."""
    if row.spec.parent is None:
        return None
    held = queries.accepted_of(connection, row.spec.parent)
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
