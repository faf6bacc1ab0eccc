"""What anybody may see: the run, its workers, assignments, experts, results; and health."""

import math
from collections import Counter

from fastapi import APIRouter
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import ApiContext, Context, load_workload
from coordinator.ledger import queries
from coordinator.ledger.queries import ROLES
from coordinator.scheduler import expected_end, make_schedule
from coordinator.workload import Workload, candidates, deserted, unstarted
from protocol import PROTOCOL_VERSION
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.messages import (
    AssignmentView,
    DomainView,
    ExpertView,
    ResultTable,
    RunInfo,
    StatusView,
    WorkerView,
)
from shared.version import SOFTWARE_VERSION

router = APIRouter(tags=["status"])

ROLE_SECONDS = 60.0
"""A role that gave no sign of life for so long counts as down."""


@router.get("/v1/run")
def run(context: Context) -> RunInfo:
    """What a newcomer must know before it joins."""
    with context.ledger.read() as connection:
        found = queries.get_run(connection)
    return RunInfo(
        run=found.run,
        coordinator=context.identity.peer_id,
        protocol_version=PROTOCOL_VERSION,
        software_version=SOFTWARE_VERSION,
        bootstrap=found.maddrs,
        server_time=context.now(),
        heartbeat_seconds=context.settings.heartbeat_seconds,
    )


@router.get("/v1/status")
def status(context: Context) -> StatusView:
    """The whole run at a glance."""
    now = context.now()
    with context.ledger.read() as connection:
        found = queries.get_run(connection)
        rows = queries.all_assignments(connection)
        states = Counter(row.state for row in rows)
        experts = Counter(row.state for row in rows if row.spec.kind == "expert")
        workers = queries.worker_views(
            connection, now=now, heartbeat_seconds=context.settings.heartbeat_seconds
        )
        load = load_workload(connection, context, now)
        measured_at = queries.results_recorded_at(connection)
        return StatusView(
            run=found.run,
            coordinator=context.identity.peer_id,
            phase=found.phase,
            phase_reason=(deserted(load) or found.phase_reason)[:500],
            phase_age_seconds=max(0.0, now - queries.phase_since(connection)),
            round=found.round,
            assignments={state.value: number for state, number in states.items()},
            workers=dict(Counter(worker.state for worker in workers)),
            experts_accepted=experts[AssignmentState.ACCEPTED],
            experts_planned=experts.total() - experts[AssignmentState.CANCELLED],
            eta_seconds=_eta_seconds(load, context, now),
            perplexities=queries.perplexity_views(connection, now=now),
            results=queries.newest_results(connection),
            results_age_seconds=None if measured_at is None else max(0.0, now - measured_at),
            software_version=SOFTWARE_VERSION,
            protocol_version=PROTOCOL_VERSION,
            server_time=now,
            uptime_seconds=max(0.0, now - context.started_at),
            roles=_role_ages(connection, now),
        )


@router.get("/v1/workers")
def workers(context: Context) -> list[WorkerView]:
    """Every worker."""
    with context.ledger.read() as connection:
        return queries.worker_views(
            connection,
            now=context.now(),
            heartbeat_seconds=context.settings.heartbeat_seconds,
        )


@router.get("/v1/domains")
def domains(context: Context) -> list[DomainView]:
    """Every domain."""
    with context.ledger.read() as connection:
        return queries.domain_views(connection)


@router.get("/v1/experts")
def experts(context: Context) -> list[ExpertView]:
    """Every accepted checkpoint."""
    with context.ledger.read() as connection:
        return queries.expert_views(connection)


@router.get("/v1/assignments")
def assignments(context: Context) -> list[AssignmentView]:
    """Every assignment, and why it stands where it stands."""
    with context.ledger.read() as connection:
        return queries.assignment_views(connection, now=context.now())


@router.get("/v1/results")
def results(context: Context) -> ResultTable:
    """The newest result table."""
    with context.ledger.read() as connection:
        table = queries.newest_results(connection)
        phase = queries.get_run(connection).phase
    if table is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"results: none yet, the run is {phase}")
    return table


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(context: Context) -> dict[str, str]:
    """The ledger can be read and every role writes its signs of life into it."""
    now = context.now()
    try:
        with context.ledger.read() as connection:
            ages = _role_ages(connection, now)
    except SQLAlchemyError as error:
        raise ApiError(ErrorCode.NOT_READY, "ledger: cannot be read") from error
    down = [role for role in ROLES if ages.get(role, ROLE_SECONDS) >= ROLE_SECONDS]
    if down:
        raise ApiError(
            ErrorCode.NOT_READY, f"roles without a sign of life for {ROLE_SECONDS:.0f} s: {down}"
        )
    return {"status": "ready"}


def _role_ages(connection: Connection, now: float) -> dict[str, float]:
    return {role: max(0.0, now - at) for role, at in queries.role_beats(connection).items()}


def _eta_seconds(load: Workload, context: ApiContext, now: float) -> float | None:
    if not load.assignments:
        return None
    schedule = make_schedule(
        unstarted(load), candidates(load, trusted=context.settings.trusted), now=now
    )
    end = expected_end(schedule, now=now)
    return end - now if end is not None and math.isfinite(end) else None
