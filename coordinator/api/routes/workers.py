"""Joining and staying: challenge, register, heartbeat."""

from fastapi import APIRouter
from sqlalchemy import Connection

from coordinator.api import auth
from coordinator.api.admission import check_room
from coordinator.api.errors import ApiError
from coordinator.api.routes.context import Call, Context, Said, Worker, unwrap
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
async def challenge(context: Context) -> Challenge:
    """A nonce to sign, good once. Costs the ledger nothing."""
    return auth.issue_challenge(context.settings, now=context.now())


@router.post("/register")
async def register(context: Context, request: RegisterRequest) -> RegisterAnswer:
    """Prove to hold a key; get a token and a certificate. Repeating it replaces the token."""
    now = context.now()
    nonce_expires_at = auth.check_request(
        request, identity=context.identity, settings=context.settings, now=now
    )
    check_room(context)

    def write(connection: Connection) -> RegisterAnswer | ApiError:
        with context.listening(connection, context.now()):
            return auth.register(
                connection,
                request,
                nonce_expires_at=nonce_expires_at,
                identity=context.identity,
                settings=context.settings,
                now=context.now(),
            )

    return unwrap(await context.writer.write(write, urgent=False))


@router.post("/heartbeat")
async def heartbeat(worker: Worker, beat: WorkerHeartbeat) -> HeartbeatAnswer:
    """Alive, with or without an assignment."""

    def write(call: Call) -> HeartbeatAnswer:
        settings, connection = call.context.settings, call.connection
        queries.keep_submissions(
            connection,
            call.worker.worker,
            now=call.now,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        # What is free while training runs is not what the next assignment may use.
        if queries.live_lease_of(connection, call.worker.worker) is None:
            queries.set_capability(connection, call.worker.worker, beat.capability)
        news = call.news(beat.receipts_after)
        return HeartbeatAnswer(next_heartbeat_seconds=settings.heartbeat_seconds, **vars(news))

    return await worker.write(write, said=Said(maddrs=beat.maddrs))
