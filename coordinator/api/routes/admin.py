"""What the operator decides: bans and drains, single assignments, pauses; and what was decided.

Each decision is an entry of the ledger. Repeating one changes nothing.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection

from coordinator.api.errors import ApiError
from coordinator.api.operator import OperatorOnly
from coordinator.api.routes.context import ApiContext, Context, unwrap
from coordinator.ledger import queries
from coordinator.lifecycle import Refused
from protocol.admin import (
    AssignmentStanding,
    AssignmentVerb,
    EntryView,
    Order,
    RowView,
    RunPause,
    RunVerb,
    WorkerMarks,
    WorkerVerb,
)
from protocol.errors import ErrorCode
from protocol.ids import AssignmentId, WorkerId
from protocol.values import MAX_INTEGER

router = APIRouter(prefix="/v1/admin", tags=["admin"], dependencies=[OperatorOnly])

MAX_ENTRIES = 1000

Answer = TypeVar("Answer")


@router.post("/workers/{worker}/{verb}")
async def mark(
    context: Context,
    worker: Annotated[WorkerId, Path()],
    verb: Annotated[WorkerVerb, Path()],
    order: Order,
) -> WorkerMarks:
    """Ban a worker, drain it, or take that back. A ban ends its lease, and its token is refused."""

    def write(connection: Connection, now: float) -> WorkerMarks | ApiError:
        marked = queries.treat_worker(connection, worker, verb, reason=order.reason, now=now)
        if marked is None:
            return ApiError(ErrorCode.UNKNOWN_WORKER, f"worker {worker}: none in this run")
        return WorkerMarks(worker=worker, banned=marked.banned, draining=marked.draining)

    return await _write(context, write)


@router.post("/assignments/{assignment}/{verb}")
async def settle(
    context: Context,
    assignment: Annotated[AssignmentId, Path()],
    verb: Annotated[AssignmentVerb, Path()],
    order: Order,
) -> AssignmentStanding:
    """Open an assignment again, or end it; with an original ends its backup."""

    def write(connection: Connection, now: float) -> AssignmentStanding | Refused:
        settled = queries.settle_assignment(
            connection, assignment, verb, reason=order.reason, now=now
        )
        if isinstance(settled, Refused):
            return settled
        return AssignmentStanding(assignment=assignment, state=settled.row.state, also=settled.also)

    return await _write(context, write)


@router.post("/{verb}")
async def pause(context: Context, verb: Annotated[RunVerb, Path()], order: Order) -> RunPause:
    """Make no new offers, or make them again. Running leases go on either way."""

    def write(connection: Connection, now: float) -> RunPause:
        paused = verb == "pause"
        queries.set_paused(connection, paused, reason=order.reason, now=now)
        return RunPause(run=context.settings.run, paused=paused)

    return await _write(context, write)


@router.get("/entries")
async def entries(
    context: Context,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 100,
) -> list[EntryView]:
    """Entries in order, a page at a time: `after` is the number of the last one before."""
    found = await context.read(
        lambda connection: queries.read_entries(connection, after=after, limit=limit)
    )
    return [view_of(entry) for entry in found]


def view_of(entry: queries.Entry) -> EntryView:
    """An entry as it is shown."""
    return EntryView(
        number=entry.number,
        at=entry.at,
        kind=entry.kind,
        facts=dict(entry.facts),
        rows=tuple(
            RowView(table=row.table, new=row.new, values=dict(row.values)) for row in entry.rows
        ),
        previous=entry.previous,
        digest=entry.digest,
    )


async def _write(
    context: ApiContext, work: Callable[[Connection, float], Answer | Refused | ApiError]
) -> Answer:
    def write(connection: Connection) -> Answer | Refused | ApiError:
        now = context.now()
        # A ban lets run out what is due: never before the api's own silence is forgiven.
        with context.listening(connection, now):
            return work(connection, now)

    return unwrap(await context.writer.write(write))
