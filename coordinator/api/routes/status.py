"""What anybody may see: the run, its workers, assignments, experts, results; and health."""

import contextlib
import math
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from coordinator.api import auth
from coordinator.api.errors import ApiError
from coordinator.api.routes.context import ApiContext, Authorization, Context, Outlook
from coordinator.ledger import LedgerError, queries
from coordinator.ledger.queries import ROLES
from protocol import PROTOCOL_VERSION
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.messages import RunInfo
from protocol.views import (
    AssignmentView,
    DomainView,
    ExpertView,
    ResultTable,
    StatusView,
    WorkerView,
)
from shared.version import SOFTWARE_VERSION

router = APIRouter(tags=["status"])

ROLE_SECONDS = 60.0
"""A role that gave no sign of life for so long counts as down."""

MAX_PAGE = 1000

After = Annotated[str, Query(max_length=64, pattern=r"^[A-Za-z0-9]*$")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


@router.get("/v1/run")
async def run(context: Context, authorization: Authorization = None) -> RunInfo:
    """What a newcomer must know before it joins. With a token: also members that can be joined."""
    found = await context.read(queries.get_run)
    bootstrap = found.maddrs
    with contextlib.suppress(ApiError):
        auth.bearer_token(authorization, key=context.settings.token_key)
        bootstrap = await context.read(
            lambda connection: auth.bootstrap_peers(
                connection, settings=context.settings, now=context.now()
            )
        )
    return RunInfo(
        run=found.run,
        coordinator=context.identity.peer_id,
        protocol_version=PROTOCOL_VERSION,
        software_version=SOFTWARE_VERSION,
        bootstrap=bootstrap,
        server_time=context.now(),
        heartbeat_seconds=context.settings.heartbeat_seconds,
        on_offer=context.outlook.on_offer,
    )


@router.get("/v1/status")
async def status(context: Context) -> StatusView:
    """The whole run at a glance."""
    return await context.read(lambda connection: _status(connection, context))


@router.get("/v1/workers")
async def workers(context: Context, after: After = "", limit: Limit = MAX_PAGE) -> list[WorkerView]:
    """Workers by peer id, a page at a time: `after` is the last one of the page before."""
    heartbeat_seconds = context.settings.heartbeat_seconds
    return await context.read(
        lambda connection: queries.worker_views(
            connection,
            now=context.now(),
            heartbeat_seconds=heartbeat_seconds,
            after=after,
            limit=limit,
        )
    )


@router.get("/v1/domains")
async def domains(context: Context) -> list[DomainView]:
    """Every domain."""
    return await context.read(queries.domain_views)


@router.get("/v1/experts")
async def experts(context: Context) -> list[ExpertView]:
    """Every accepted checkpoint."""
    return await context.read(queries.expert_views)


@router.get("/v1/assignments")
async def assignments(
    context: Context,
    after: After = "",
    limit: Limit = MAX_PAGE,
    state: AssignmentState | None = None,
) -> list[AssignmentView]:
    """Assignments by id, a page at a time, and why each stands where it stands."""
    return await context.read(
        lambda connection: queries.assignment_views(
            connection, now=context.now(), after=after, limit=limit, state=state
        )
    )


@router.get("/v1/results")
async def results(context: Context) -> ResultTable:
    """The newest result table."""

    def read(connection: Connection) -> ResultTable:
        table = queries.newest_results(connection)
        if table is None:
            phase = queries.get_run(connection).phase
            raise ApiError(ErrorCode.NOT_FOUND, f"results: none yet, the run is {phase}")
        return table

    return await context.read(read)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(context: Context) -> dict[str, str]:
    """The ledger can be read and every role writes its signs of life into it."""
    now = context.now()
    try:
        ages = await context.read(lambda connection: _role_ages(connection, now))
    except (SQLAlchemyError, LedgerError) as error:
        raise ApiError(ErrorCode.NOT_READY, "ledger: cannot be read") from error
    down = [role for role in ROLES if ages.get(role, ROLE_SECONDS) >= ROLE_SECONDS]
    if down:
        raise ApiError(
            ErrorCode.NOT_READY, f"roles without a sign of life for {ROLE_SECONDS:.0f} s: {down}"
        )
    return {"status": "ready"}


def _status(connection: Connection, context: ApiContext) -> StatusView:
    now = context.now()
    found = queries.get_run(connection)
    experts = queries.count_by_state(connection, kind="expert")
    measured_at = queries.results_recorded_at(connection)
    outlook = context.outlook
    return StatusView(
        run=found.run,
        coordinator=context.identity.peer_id,
        phase=found.phase,
        phase_reason=(outlook.deserted or found.phase_reason)[:500],
        phase_age_seconds=max(0.0, now - found.phase_since),
        paused=found.paused,
        round=found.round,
        assignments=queries.count_by_state(connection),
        workers=queries.count_workers(
            connection, now=now, heartbeat_seconds=context.settings.heartbeat_seconds
        ),
        experts_accepted=experts.get(AssignmentState.ACCEPTED, 0),
        experts_planned=sum(experts.values()) - experts.get(AssignmentState.CANCELLED, 0),
        eta_seconds=_eta_seconds(outlook, now),
        perplexities=queries.perplexity_views(connection, now=now),
        results=queries.newest_results(connection),
        results_age_seconds=None if measured_at is None else max(0.0, now - measured_at),
        software_version=SOFTWARE_VERSION,
        protocol_version=PROTOCOL_VERSION,
        server_time=now,
        uptime_seconds=max(0.0, now - context.started_at),
        roles=_role_ages(connection, now),
        own_domains=queries.own_domain_views(connection, now=now),
    )


def _eta_seconds(outlook: Outlook, now: float) -> float | None:
    end = outlook.end
    return max(0.0, end - now) if end is not None and math.isfinite(end) else None


def _role_ages(connection: Connection, now: float) -> dict[str, float]:
    return {role: max(0.0, now - at) for role, at in queries.role_beats(connection).items()}
