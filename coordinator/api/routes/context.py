"""What the handlers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from sqlalchemy import Connection

from coordinator.api import auth
from coordinator.api.errors import ApiError
from coordinator.api.settings import ApiSettings
from coordinator.ledger import Ledger, queries
from coordinator.ledger.queries import WorkerRow
from coordinator.lifecycle import Refused
from coordinator.workload import WORKER_INTERVALS, Workload
from protocol.digests import digest_value
from protocol.messages import (
    AssignmentHeartbeatAnswer,
    LeaseAnswer,
    LeaseRequest,
    LeaseState,
    RegisterAnswer,
    Submission,
)
from shared.identity import Identity

Answer = TypeVar("Answer", LeaseAnswer, LeaseState, AssignmentHeartbeatAnswer, RegisterAnswer)


@dataclass(frozen=True)
class ApiContext:
    """The api's ledger, key, settings and clock."""

    ledger: Ledger
    identity: Identity
    settings: ApiSettings
    now: Callable[[], float]
    started_at: float


def _context(request: Request) -> ApiContext:
    context = request.app.state.context
    if not isinstance(context, ApiContext):
        raise TypeError(f"app.state.context: {type(context)}, expected ApiContext")
    return context


def _worker(
    context: Annotated[ApiContext, Depends(_context)],
    authorization: Annotated[str | None, Header()] = None,
) -> WorkerRow:
    with context.ledger.read() as connection:
        return auth.authenticate(connection, authorization, now=context.now())


Context = Annotated[ApiContext, Depends(_context)]
Worker = Annotated[WorkerRow, Depends(_worker)]
"""The worker whose token came with the request."""


def see(connection: Connection, context: ApiContext, worker: WorkerRow, now: float) -> None:
    """Note a sign of life; the api's own silence is forgiven before any lease is judged by it."""
    settings = context.settings
    queries.forgive_downtime(connection, now=now, tolerance_seconds=settings.heartbeat_seconds)
    queries.see_worker(
        connection, worker.worker, token_expires_at=now + settings.token_seconds, now=now
    )
    queries.keep_submissions(
        connection, worker.worker, now=now, heartbeat_seconds=settings.heartbeat_seconds
    )


def answered_before(
    connection: Connection,
    worker: WorkerRow,
    request: LeaseRequest | Submission,
    kind: type[Answer],
) -> Answer | Refused | None:
    """The answer that this request got before, if its id was used."""
    found = queries.find_answer(
        connection, worker.worker, request.request_id, digest_value(request)
    )
    return kind.model_validate_json(found) if isinstance(found, str) else found


def remember_answer(
    connection: Connection,
    worker: WorkerRow,
    request: LeaseRequest | Submission,
    answer: LeaseAnswer | LeaseState,
    now: float,
) -> None:
    """Keep the answer for a repetition of the request."""
    queries.keep_answer(
        connection,
        worker.worker,
        request.request_id,
        body_digest=digest_value(request),
        answer=answer.model_dump_json(),
        now=now,
    )


def load_workload(connection: Connection, context: ApiContext, now: float) -> Workload:
    """What the scheduler decides on, as it stands in this transaction."""
    heartbeat_seconds = context.settings.heartbeat_seconds
    return Workload(
        assignments=queries.all_assignments(connection),
        attempts=queries.live_attempts(connection),
        workers=queries.active_workers(
            connection, since=now - WORKER_INTERVALS * heartbeat_seconds
        ),
        accepted=queries.accepted(connection).keys(),
        durable_steps=queries.durable_steps(connection),
        uncollected_steps=queries.uncollected_steps(connection, since=now - heartbeat_seconds),
        ran_out=queries.ran_out_of_memory(connection),
        heartbeat_seconds=heartbeat_seconds,
        now=now,
    )


def unwrap(outcome: Answer | Refused | ApiError) -> Answer:
    """The answer, or the refusal as the error that its client sees.

    Called after the transaction: what was noted before a refusal is committed.
    """
    if isinstance(outcome, Refused):
        raise ApiError.of(outcome)
    if isinstance(outcome, ApiError):
        raise outcome
    return outcome
