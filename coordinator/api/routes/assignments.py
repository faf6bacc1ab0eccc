"""What a lease's holder says: acknowledge, heartbeat, submit, release."""

from typing import Annotated

from fastapi import APIRouter, Path

from coordinator.api import auth
from coordinator.api.routes.context import (
    ApiContext,
    Context,
    Worker,
    answered_before,
    remember_answer,
    see,
    unwrap,
)
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
def acknowledge(
    context: Context, worker: Worker, assignment: Id, request: Acknowledge
) -> LeaseState:
    """The worker starts; its lease runs from now on."""
    now = context.now()
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        outcome = queries.acknowledge_lease(
            connection,
            assignment,
            Holder(worker=worker.worker, fencing=request.fencing),
            now=now,
            heartbeat_seconds=context.settings.heartbeat_seconds,
        )
    return unwrap(_state(context, outcome, now))


@router.post("/heartbeat")
def heartbeat(
    context: Context, worker: Worker, assignment: Id, beat: AssignmentHeartbeat
) -> AssignmentHeartbeatAnswer:
    """The trainer's progress renews the lease."""
    now = context.now()
    settings = context.settings
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        standing = queries.renew_lease(
            connection,
            assignment,
            beat,
            worker=worker.worker,
            now=now,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        outcome = (
            standing
            if isinstance(standing, Refused)
            else AssignmentHeartbeatAnswer(
                next_heartbeat_seconds=settings.heartbeat_seconds,
                wanted=queries.wanted_from(connection, worker.worker),
                durable=queries.held_manifests(connection, worker.worker),
                certificate=auth.renew_certificate(
                    connection, worker, identity=context.identity, settings=settings, now=now
                ),
                lease_seconds=_left(standing, now),
                durable_step=queries.durable_steps(connection).get(assignment),
            )
        )
    return unwrap(outcome)


@router.post("/submit")
def submit(context: Context, worker: Worker, assignment: Id, request: Submission) -> LeaseState:
    """Hand in the manifest of the finished expert; under an old lease it is a spare."""
    now = context.now()
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        outcome = answered_before(connection, worker, request, LeaseState)
        if outcome is None:
            standing = queries.submit_expert(
                connection,
                assignment,
                request,
                worker=worker.worker,
                now=now,
                heartbeat_seconds=context.settings.heartbeat_seconds,
            )
            outcome = _state(context, standing, now)
            if not isinstance(outcome, Refused):
                queries.set_asked(connection, worker.worker, now)
                remember_answer(connection, worker, request, outcome, now)
    return unwrap(outcome)


@router.post("/release")
def release(context: Context, worker: Worker, assignment: Id, request: Release) -> LeaseState:
    """Give the lease back."""
    now = context.now()
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        outcome = queries.release_lease(
            connection, assignment, request, worker=worker.worker, now=now
        )
        if not isinstance(outcome, Refused):
            queries.set_asked(connection, worker.worker, None)
    return unwrap(_state(context, outcome, now))


def _state(context: ApiContext, outcome: Assignment | Refused, now: float) -> LeaseState | Refused:
    if isinstance(outcome, Refused):
        return outcome
    return LeaseState(
        assignment=outcome.assignment,
        state=outcome.state,
        lease_seconds=_left(outcome, now),
        next_heartbeat_seconds=context.settings.heartbeat_seconds,
    )


def _left(standing: Assignment, now: float) -> float:
    return 0.0 if standing.expires_at is None else max(0.0, standing.expires_at - now)
