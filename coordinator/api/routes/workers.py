"""Joining and staying: challenge, register, heartbeat."""

from fastapi import APIRouter

from coordinator.api import auth
from coordinator.api.routes.context import Context, Worker, see, unwrap
from coordinator.ledger import queries
from protocol.messages import (
    Challenge,
    HeartbeatAnswer,
    RegisterAnswer,
    RegisterRequest,
    WorkerHeartbeat,
)

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.post("/challenge")
def challenge(context: Context) -> Challenge:
    """A nonce to sign, good once."""
    with context.ledger.begin() as connection:
        return auth.issue_challenge(connection, now=context.now())


@router.post("/register")
def register(context: Context, request: RegisterRequest) -> RegisterAnswer:
    """Prove to hold a key; get a token and a certificate. Repeating it replaces the token."""
    with context.ledger.begin() as connection:
        outcome = auth.register(
            connection,
            request,
            identity=context.identity,
            settings=context.settings,
            now=context.now(),
        )
    return unwrap(outcome)


@router.post("/heartbeat")
def heartbeat(context: Context, worker: Worker, beat: WorkerHeartbeat) -> HeartbeatAnswer:
    """Alive, with or without an assignment."""
    now = context.now()
    with context.ledger.begin() as connection:
        see(connection, context, worker, now)
        queries.set_maddrs(connection, worker.worker, beat.maddrs)
        # What is free while training runs is not what the next assignment may use.
        if queries.live_lease_of(connection, worker.worker) is None:
            queries.set_capability(connection, worker.worker, beat.capability)
        return HeartbeatAnswer(
            next_heartbeat_seconds=context.settings.heartbeat_seconds,
            wanted=queries.wanted_from(connection, worker.worker),
            durable=queries.held_manifests(connection, worker.worker),
            certificate=auth.renew_certificate(
                connection,
                worker,
                identity=context.identity,
                settings=context.settings,
                now=now,
            ),
        )
