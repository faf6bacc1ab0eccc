"""Why a worker gets what it gets: every open assignment considered, and all that stands in between.

Answers the worker itself and the operator.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection

from coordinator.api.admission import check_room
from coordinator.api.errors import ApiError
from coordinator.api.limits import CALLS_A_HEARTBEAT, TooFast, admit, calls_left
from coordinator.api.operator import is_operator
from coordinator.api.routes.context import ApiContext, Authorization, Call, Caller, Context, unwrap
from coordinator.api.routes.leasing import MAX_REASON, uncollected_of
from coordinator.ledger import queries
from coordinator.ledger.queries import Attempt, RunRow, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS, MAX_UNCOLLECTED
from coordinator.scheduling import Verdict
from coordinator.scheduling.requirements import short
from protocol.admin import ConsideredView, RateView, WhyView
from protocol.errors import ErrorCode
from protocol.ids import WorkerId
from shared.words import duration

router = APIRouter(prefix="/v1/workers/{worker}/why", tags=["workers"])

MAX_CONSIDERED = 200
"""An account is given between two decisions, which wait for it."""

After = Annotated[str, Query(max_length=17, pattern=r"^[a-z0-9]*$")]
Limit = Annotated[int, Query(ge=1, le=MAX_CONSIDERED)]


@router.get("")
async def why(
    context: Context,
    worker: Annotated[WorkerId, Path()],
    authorization: Authorization = None,
    after: After = "",
    limit: Limit = 100,
) -> WhyView:
    """What the scheduler would say if the worker asked now. For the worker and the operator."""
    if is_operator(authorization, context.settings):
        check_room(context)

        def account(connection: Connection) -> WhyView | ApiError:
            found = queries.find_worker(connection, worker)
            if found is None:
                return ApiError(ErrorCode.UNKNOWN_WORKER, f"worker {worker}: none in this run")
            return _explain(connection, context, found, after=after, limit=limit)

        return unwrap(await context.writer.write(account, urgent=False))

    caller = Caller(context, authorization)
    check_room(context)

    def own_account(call: Call) -> WhyView | ApiError:
        if call.worker.worker != worker:
            return ApiError(
                ErrorCode.FORBIDDEN, f"worker {worker}: only itself and the operator may ask"
            )
        return _explain(call.connection, context, call.worker, after=after, limit=limit)

    return await caller.write(own_account, urgent=False)


def _explain(
    connection: Connection, context: ApiContext, worker: WorkerRow, *, after: str, limit: int
) -> WhyView:
    heartbeat_seconds, now = context.settings.heartbeat_seconds, context.now()
    context.fleet.follow(connection, now)
    leases = queries.live_leases_of(connection, worker.worker)
    worker, held = _asking_device(connection, worker, leases)
    # One more than is shown tells whether there is another page.
    account = context.fleet.why(worker, now=now, after=after, limit=limit + 1)
    shown = account.verdicts[:limit]
    uncollected = uncollected_of(connection, worker.worker, worker.device_number)
    online = queries.is_online(worker, now=now, heartbeat_seconds=heartbeat_seconds)
    blockers = find_blockers(
        worker,
        queries.get_run(connection),
        held=held,
        uncollected=uncollected,
        online=online,
        now=now,
    )
    waits_since = worker.waits_since
    return WhyView(
        worker=worker.worker,
        name=worker.name,
        state=queries.worker_state(worker, online=online, works=bool(leases)),
        age_seconds=max(0.0, now - worker.seen_at),
        holds=leases[0].assignment if leases else None,
        uncollected=uncollected,
        blockers=blockers,
        answer=account.answer[:MAX_REASON],
        expected_flops_per_second=account.speed,
        waited_seconds=None if waits_since is None else max(0.0, now - waits_since),
        patience_seconds=LEASE_INTERVALS * heartbeat_seconds,
        rate=_rate(worker.allowed_at, now=now, heartbeat_seconds=heartbeat_seconds),
        considered=tuple(_considered(verdict, now) for verdict in shown),
        next_after=shown[-1].assignment if len(account.verdicts) > limit else None,
    )


def _asking_device(
    connection: Connection, worker: WorkerRow, leases: Sequence[Attempt]
) -> tuple[WorkerRow, Attempt | None]:
    """The device that could get work now, and the lease that keeps it from that.

    The first one that is free, or with none the first; a newcomer's are free together.
    """
    busy = {held.device_number for held in leases}
    devices = queries.these_workers(connection, [worker.worker])
    free = [one for one in devices if one.device_number not in busy]
    if leases and (not free or not queries.is_proven(connection, worker.worker)):
        return worker, leases[0]
    return free[0] if free else worker, None


def find_blockers(
    worker: WorkerRow,
    run: RunRow,
    *,
    held: Attempt | None,
    uncollected: int,
    online: bool,
    now: float,
) -> tuple[str, ...]:
    """What keeps a worker from all work now, in words; empty: nothing does. Pure."""
    waiting = (
        f"{uncollected} of its submissions wait to be collected, at most {MAX_UNCOLLECTED} may"
    )
    found = [
        (run.phase == "finished", "the run is finished"),
        (run.paused, "the operator paused the run"),
        (worker.banned, "the operator banned it"),
        (worker.draining, "the operator asked it to take no more work"),
        (not online, f"it has been silent for {duration(now - worker.seen_at)}"),
        (worker.token_expires_at <= now, "its token has expired: it must register again"),
        (held is not None, f"it holds {'' if held is None else held.assignment} already"),
        (uncollected > MAX_UNCOLLECTED, waiting),
    ]
    return tuple(words for holds, words in found if holds)


def _rate(allowed_at: float, *, now: float, heartbeat_seconds: float) -> RateView:
    next_call = admit(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds)
    return RateView(
        calls_left=calls_left(allowed_at, now=now, heartbeat_seconds=heartbeat_seconds),
        calls_a_second=CALLS_A_HEARTBEAT / heartbeat_seconds,
        retry_after_seconds=(
            next_call.retry_after_seconds if isinstance(next_call, TooFast) else 0.0
        ),
    )


def _considered(verdict: Verdict, now: float) -> ConsideredView:
    obstacle = verdict.obstacle
    if obstacle is not None:
        return ConsideredView(
            assignment=verdict.assignment,
            description=verdict.words[:MAX_REASON],
            fits=False,
            given=False,
            words=obstacle.words[:MAX_REASON],
            requirement=obstacle.requirement,
            needed=_finite(obstacle.needed),
            held=_finite(obstacle.held),
            unit=obstacle.unit,
        )
    return ConsideredView(
        assignment=verdict.assignment,
        description=verdict.words[:MAX_REASON],
        fits=True,
        given=verdict.given,
        words=_words(verdict, now)[:MAX_REASON],
        finish_seconds=_from(verdict.finish, now),
        target_seconds=_from(verdict.target, now),
        sooner=verdict.sooner,
        sooner_seconds=_from(verdict.sooner_finish, now),
    )


def _words(verdict: Verdict, now: float) -> str:
    if verdict.given:
        return "it would get this one now"
    if verdict.sooner is not None and verdict.sooner_finish is not None:
        return (
            f"worker {short(verdict.sooner)} is expected to finish it sooner, in "
            f"{duration(verdict.sooner_finish - now)}"
        )
    return "it fits, and another comes first"


def _from(at: float | None, now: float) -> float | None:
    return None if at is None else _finite(at - now)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
