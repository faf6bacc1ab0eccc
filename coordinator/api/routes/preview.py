"""A look at what a request for work would get: no lease, no entry, no offer that would lapse.

The scheduler answers as it would answer the request itself. Where it would give nothing, all work
that is not finished is looked at, also what others do: whether any of it fits the machine, and what
the machine lacks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fastapi import APIRouter
from sqlalchemy import Connection

from coordinator.api.admission import check_room
from coordinator.api.errors import ApiError
from coordinator.api.routes.context import ApiContext, Call, Context, Worker
from coordinator.api.routes.leasing import MAX_REASON, burden_of, find_blocker, parent_of
from coordinator.footprint import Footprints
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, WorkerRow
from coordinator.scheduling import Backup, Candidate, Choice, NoWork, Obstacle
from coordinator.scheduling.requirements import find_obstacle
from coordinator.workload import make_candidate, make_work
from protocol.assignments import FINAL, AssignmentState
from protocol.messages import LeaseRequest
from protocol.previews import MAX_LACKS, Lack, Preview, PreviewedWork, Prospect
from protocol.views import Phase

router = APIRouter(prefix="/v1/assignments", tags=["assignments"])

MAX_LOOKED_AT = 500
"""Of each state. The look is taken beside the ledger's writer, which it holds up a little."""

UNPLANNED = frozenset[Phase]({"preparing", "seeding", "planning"})
"""Phases in which most of the run's work is not known yet."""

NOT_PLANNED_YET = "nothing that is known fits this machine, but more work is still to be planned"

PASSING = frozenset({"pause"})
"""Requirements that time alone will meet."""


@dataclass(frozen=True)
class Seen:
    """What the scheduler would say. `speed` in FLOP/s is what it expects of the worker, and
    `footprints` say what it expects of the memory that work takes."""

    asking: WorkerRow
    phase: Phase
    speed: float
    reason: str
    footprints: Footprints
    work: PreviewedWork | None = None


@router.post("/preview")
async def preview(context: Context, worker: Worker, request: LeaseRequest) -> Preview:
    """What a request for work would get now, or why it would get nothing. Changes nothing."""
    check_room(context)

    def look(call: Call) -> Seen | ApiError:
        return _look(call, request)

    seen = await worker.write(look, urgent=False)
    now = context.now()
    return await context.read(lambda connection: _answer(connection, context, seen, now))


def _look(call: Call, request: LeaseRequest) -> Seen:
    connection, fleet = call.connection, call.context.fleet
    worker = queries.as_device(connection, call.worker, request.device_number)
    run, asking = queries.get_run(connection), call.asking(request)
    fleet.follow(connection, call.now)
    foresight = fleet.foresee(worker, asking, now=call.now)
    said = foresight.choice.reason
    seen = Seen(asking, run.phase, foresight.speed, said, fleet.footprints())
    number, leases = worker.device_number, queries.live_leases_of(connection, worker.worker)
    held = next((one for one in leases if one.device_number == number), None)
    if held is not None:
        mine = queries.get_assignment(connection, held.assignment)
        return _with_work(call, replace(seen, reason="you hold it already"), mine)
    row = _chosen(connection, foresight.choice)
    burden = burden_of(connection, worker.worker, number, leases)
    has_own_work = row is not None and row.owner is not None
    blocker = find_blocker(run, burden, has_own_work=has_own_work)
    if blocker:
        return replace(seen, reason=blocker)
    return seen if row is None else _with_work(call, seen, row)


def _chosen(connection: Connection, choice: Choice | Backup | NoWork) -> AssignmentRow | None:
    if isinstance(choice, NoWork):
        return None
    chosen = choice.of if isinstance(choice, Backup) else choice.assignment
    return queries.get_assignment(connection, chosen)


def _with_work(call: Call, seen: Seen, row: AssignmentRow) -> Seen:
    resume = queries.resume_of(call.connection, row.assignment, row.backup_of)
    work = PreviewedWork(
        spec=row.spec,
        shard=row.shard,
        parent=parent_of(call.connection, row),
        resume=None if resume is None else resume.manifest,
        checkpoint_seconds=call.context.settings.checkpoint_seconds,
        reason=seen.reason[:MAX_REASON],
        memory_bytes=seen.footprints.memory_bytes(row.spec, seen.asking.capability.device),
    )
    return replace(seen, work=work)


def _answer(connection: Connection, context: ApiContext, seen: Seen, now: float) -> Preview:
    rows = [
        row
        for state in AssignmentState
        if state not in FINAL
        for row in queries.some_assignments(connection, state=state.value, limit=MAX_LOOKED_AT)
        if row.backup_of is None and row.owner in (None, seen.asking.worker)
    ]
    candidate = make_candidate(
        seen.asking,
        observed=seen.speed,
        proven=True,
        trusted=context.settings.trusted,
        busy_until=now,
        now=now,
    )
    obstacles = judge(rows, candidate, now=now, footprints=seen.footprints)
    fits = any(one is None or one.requirement in PASSING for _, one in obstacles)
    prospect = prospect_of(seen.phase, given=seen.work is not None, fits=fits, known=len(obstacles))
    unsuited = prospect == "later" and bool(obstacles) and not fits
    return Preview(
        prospect=prospect,
        work=seen.work,
        reason=(NOT_PLANNED_YET if unsuited else seen.reason)[:MAX_REASON],
        unfinished=len(rows),
        lacks=lacks_of(obstacles),
    )


def judge(
    rows: Iterable[AssignmentRow],
    candidate: Candidate,
    *,
    now: float,
    footprints: Footprints | None = None,
) -> list[tuple[str, Obstacle | None]]:
    """Of each piece of work, in words, what keeps the candidate from it; None: nothing. Pure."""
    found = []
    for row in rows:
        work = make_work(row, footprints=footprints)
        found.append((work.words, find_obstacle(work, candidate, now=now)))
    return found


def prospect_of(phase: Phase, *, given: bool, fits: bool, known: int) -> Prospect:
    """Whether a machine is of use now, later or never. Pure.

    `fits`: some of the `known` unfinished assignments would suit it. Where the plan is not made
    yet, or nothing is left that is known, other work may come.
    """
    if given:
        return "now"
    if phase == "finished":
        return "never"
    return "later" if fits or not known or phase in UNPLANNED else "never"


def lacks_of(obstacles: Iterable[tuple[str, Obstacle | None]]) -> tuple[Lack, ...]:
    """What is lacking for which work, each amount once, the smallest first. Pure."""
    found: dict[tuple[str, str], tuple[float, Lack]] = {}
    for words, obstacle in obstacles:
        if obstacle is None:
            continue
        lack = Lack(
            description=words[:MAX_REASON],
            requirement=obstacle.requirement,
            words=obstacle.words[:MAX_REASON],
            needed=obstacle.needed,
            held=obstacle.held,
            unit=obstacle.unit,
        )
        found.setdefault((lack.requirement, lack.words), (obstacle.lack, lack))
    return tuple(lack for _, lack in sorted(found.values(), key=_by_lack)[:MAX_LACKS])


def _by_lack(one: tuple[float, Lack]) -> tuple[float, str]:
    return one[0], one[1].description
