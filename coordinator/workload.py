"""From rows of the ledger to what the scheduler reads: open work and candidates. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from coordinator.ledger.queries import AssignmentRow, Attempt, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.scheduler import Candidate, Work
from protocol.assignments import AssignmentState
from protocol.capability import Device
from protocol.specs import ExpertSpec
from shared.sizing import disk_bytes, train_flops, training_memory_bytes

MIN_TOKENS_PER_SECOND = 1e-3
MAX_TOKENS_PER_SECOND = 1e9
"""A trainer's own figure outside of this is not believed."""

WORKER_INTERVALS = 20
"""Heartbeat intervals of silence after which a worker without a lease plays no part."""

DEVICES: tuple[Device, ...] = ("cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One moment of the run: rows of the ledger, and what they are to be judged by."""

    assignments: tuple[AssignmentRow, ...]
    attempts: tuple[Attempt, ...]
    workers: tuple[WorkerRow, ...]
    accepted: Collection[str]
    durable_steps: Mapping[str, int]
    uncollected_steps: Mapping[str, int]
    ran_out: Mapping[str, Mapping[str, int]]
    heartbeat_seconds: float
    now: float


def describe(spec: ExpertSpec) -> str:
    """A spec in three words."""
    return f"{spec.shape.ffn_width}-wide {spec.domain} {spec.kind}"


def offerable(load: Workload) -> list[Work]:
    """Open assignments that may be offered now.

    Not those whose parent is not accepted, that pause after coming back, or whose last holder named
    a checkpoint within a heartbeat that is newer than the durable one and still on its way.
    """
    return [
        make_work(load, row)
        for row in load.assignments
        if row.state is AssignmentState.OPEN
        and (row.spec.parent is None or row.spec.parent in load.accepted)
        and row.standing.not_before <= load.now
        and load.uncollected_steps.get(row.assignment, 0)
        <= load.durable_steps.get(row.assignment, 0)
    ]


def unstarted(load: Workload) -> list[Work]:
    """All work that nobody does now, offerable or not."""
    return [make_work(load, row) for row in load.assignments if row.state is AssignmentState.OPEN]


def deserted(load: Workload) -> str:
    """Which open assignment every worker here is excluded from, in words; empty where none is."""
    here = {worker.worker for worker in load.workers if not worker.banned}
    for row in load.assignments:
        if here and row.state is AssignmentState.OPEN and here <= row.standing.excluded:
            return (
                f"{row.assignment} ({describe(row.spec)}) waits for another worker: "
                f"the work of all {len(here)} here on it was not accepted"
            )
    return ""


def make_work(load: Workload, row: AssignmentRow) -> Work:
    """What is left of an assignment, from its newest durable checkpoint on."""
    spec, done = row.spec, load.durable_steps.get(row.assignment, 0)
    return Work(
        assignment=row.assignment,
        words=describe(spec),
        flops=train_flops(spec) * max(0.0, 1.0 - done / spec.train.num_steps),
        memory_bytes={device: training_memory_bytes(spec, device=device) for device in DEVICES},
        disk_bytes=disk_bytes(spec),
        needs_trust=spec.kind == "seed",
        excluded=row.standing.excluded,
        ran_out=load.ran_out.get(row.assignment),
    )


def candidates(load: Workload, *, trusted: Collection[str] | None) -> list[Candidate]:
    """Workers that work or asked for work within the length of a lease.

    One that only beats is left out: nothing may wait for a worker that does not ask. An idle one
    is expected when it was told to ask again, and ever later when it does not; the asking one must
    have asked at `load.now`. `trusted` None: everybody is.
    """
    specs = {row.assignment: row.spec for row in load.assignments}
    running = {attempt.worker: attempt for attempt in load.attempts}
    window = LEASE_INTERVALS * load.heartbeat_seconds
    found = []
    for worker in load.workers:
        attempt = running.get(worker.worker)
        asked = worker.asked_at is not None and load.now - worker.asked_at <= window
        if worker.banned or (attempt is None and not asked):
            continue
        busy_until = (
            _asks_again_at(load, worker)
            if attempt is None
            else _busy_until(load, worker, attempt, specs[attempt.assignment])
        )
        found.append(
            Candidate(
                worker=worker.worker,
                capability=worker.capability,
                busy_until=busy_until,
                trusted=trusted is None or worker.worker in trusted,
            )
        )
    return found


def retry_seconds(heartbeat_seconds: float) -> float:
    """When a worker that got no work is to ask again."""
    return heartbeat_seconds / 2


def counts(load: Workload) -> str:
    """How the assignments stand, in words."""
    tally: dict[str, int] = {}
    for row in load.assignments:
        tally[row.state.value] = tally.get(row.state.value, 0) + 1
    words = ", ".join(f"{number} {state}" for state, number in sorted(tally.items()))
    waiting = sum(
        row.state is AssignmentState.OPEN
        and row.spec.parent is not None
        and row.spec.parent not in load.accepted
        for row in load.assignments
    )
    return (words or "none yet") + (f"; {waiting} wait for their parent" if waiting else "")


def _asks_again_at(load: Workload, worker: WorkerRow) -> float:
    if worker.asked_at is None or worker.asked_at == load.now:
        return load.now
    due = worker.asked_at + retry_seconds(load.heartbeat_seconds)
    return due if due >= load.now else load.now + (load.now - due)


def _busy_until(load: Workload, worker: WorkerRow, attempt: Attempt, spec: ExpertSpec) -> float:
    # A lease that stands still counts as later with every second, so that nobody waits for it.
    window = LEASE_INTERVALS * load.heartbeat_seconds
    stalled = max(0.0, load.now - attempt.progressed_at - window)
    done = max(attempt.step, load.durable_steps.get(attempt.assignment, 0))
    steps = max(0, spec.train.num_steps - done)
    if MIN_TOKENS_PER_SECOND <= attempt.tokens_per_second <= MAX_TOKENS_PER_SECOND:
        left = steps * spec.train.tokens_per_step / attempt.tokens_per_second
    else:
        left = train_flops(spec) * steps / spec.train.num_steps / worker.capability.flops_per_second
    return load.now + stalled + left
