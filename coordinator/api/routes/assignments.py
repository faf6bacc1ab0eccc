"""What a lease's holder says: acknowledge, heartbeat, submit, release."""

from typing import Annotated

from fastapi import APIRouter, Path

from coordinator.api.routes.context import Call, Worker
from coordinator.ledger import queries
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.ids import AssignmentId
from protocol.messages import (
    Acknowledge,
    AssignmentHeartbeat,
    AssignmentHeartbeatAnswer,
    LeaseState,
    Release,
    Submission,
)

router = APIRouter(prefix="/v1/assignments/{assignment}", tags=["assignments"])

Id = Annotated[AssignmentId, Path()]


@router.post("/acknowledge")
async def acknowledge(worker: Worker, assignment: Id, request: Acknowledge) -> LeaseState:
    """The worker starts; its lease runs from now on. Its first heartbeat does the same."""

    def write(call: Call) -> LeaseState | Refused:
        outcome = queries.acknowledge_lease(
            call.connection,
            assignment,
            Holder(worker=call.worker.worker, fencing=request.fencing),
            now=call.now,
            heartbeat_seconds=call.context.settings.heartbeat_seconds,
        )
        return _state(call, outcome)

    return await worker.write(write)


@router.post("/heartbeat")
async def heartbeat(
    worker: Worker, assignment: Id, beat: AssignmentHeartbeat
) -> AssignmentHeartbeatAnswer:
    """The trainer's progress renews the lease."""

    def write(call: Call) -> AssignmentHeartbeatAnswer | Refused:
        connection, heartbeat_seconds = call.connection, call.context.settings.heartbeat_seconds
        queries.keep_submissions(
            connection, call.worker.worker, now=call.now, heartbeat_seconds=heartbeat_seconds
        )
        standing = queries.renew_lease(
            connection,
            assignment,
            beat,
            worker=call.worker.worker,
            flops_per_second=call.worker.capability.flops_per_second,
            now=call.now,
            heartbeat_seconds=heartbeat_seconds,
        )
        if isinstance(standing, Refused):
            return standing
        return AssignmentHeartbeatAnswer(
            next_heartbeat_seconds=heartbeat_seconds,
            lease_seconds=_left(standing, call.now),
            durable_step=queries.durable_step(connection, assignment),
            **vars(call.news(beat.receipts_after)),
        )

    return await worker.write(write)


@router.post("/submit")
async def submit(worker: Worker, assignment: Id, request: Submission) -> LeaseState:
    """Hand in the manifest of the finished expert; under an old lease it is a spare."""

    def write(call: Call) -> LeaseState | Refused:
        outcome = call.answered_before(request, LeaseState)
        if outcome is not None:
            return outcome
        standing = queries.submit_expert(
            call.connection,
            assignment,
            request,
            worker=call.worker.worker,
            now=call.now,
            heartbeat_seconds=call.context.settings.heartbeat_seconds,
        )
        outcome = _state(call, standing)
        if not isinstance(outcome, Refused):
            _expect(call, assignment, request.fencing, asks_at=call.now)
            call.remember(request, outcome)
        return outcome

    return await worker.write(write)


@router.post("/release")
async def release(worker: Worker, assignment: Id, request: Release) -> LeaseState:
    """Give the lease back."""

    def write(call: Call) -> LeaseState | Refused:
        outcome = queries.release_lease(
            call.connection,
            assignment,
            request,
            worker=call.worker.worker,
            max_attempts=call.context.settings.max_attempts,
            now=call.now,
        )
        if not isinstance(outcome, Refused):
            _expect(call, assignment, request.fencing, asks_at=None)
        return _state(call, outcome)

    return await worker.write(write)


def _expect(call: Call, assignment: str, fencing: int, *, asks_at: float | None) -> None:
    """The device that did the work is free, and asks for more then; None: it may not."""
    attempt = queries.find_attempt(call.connection, assignment, fencing)
    number = 0 if attempt is None else attempt.device_number
    queries.set_asked(call.connection, call.worker.worker, asks_at, device_number=number)


def _state(call: Call, outcome: Assignment | Refused) -> LeaseState | Refused:
    if isinstance(outcome, Refused):
        return outcome
    return LeaseState(
        assignment=outcome.assignment,
        state=outcome.state,
        lease_seconds=_left(outcome, call.now),
        next_heartbeat_seconds=call.context.settings.heartbeat_seconds,
    )


def _left(standing: Assignment, now: float) -> float:
    return 0.0 if standing.expires_at is None else max(0.0, standing.expires_at - now)
