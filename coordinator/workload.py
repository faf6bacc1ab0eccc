"""From rows of the ledger to what the scheduler reads. Pure."""

from collections.abc import Collection, Mapping
from functools import lru_cache

from coordinator.footprint import Footprints
from coordinator.ledger.queries import AssignmentRow, Attempt, WorkerRow
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.rounds import standard_of
from coordinator.scheduling import Candidate, Running, Work
from coordinator.scheduling.values import DEVICES
from protocol.assignments import AssignmentState
from protocol.capability import MAX_FLOPS_PER_SECOND, MIN_FLOPS_PER_SECOND
from protocol.specs import ExpertSpec
from shared.sizing import disk_bytes, step_flops, train_flops

QUIET_STEPS = 3
"""Steps without a word of progress after which a lease counts as standing still."""


def describe(spec: ExpertSpec) -> str:
    """A spec in three words."""
    size = f"{spec.shape.ffn_width}-wide" if spec.lora is None else f"rank-{spec.lora.rank}"
    return f"{size} {spec.domain} {spec.kind}"


def make_work(
    row: AssignmentRow,
    *,
    durable_step: int = 0,
    ran_out: Mapping[str, int] | None = None,
    not_before: float = 0.0,
    parent_weights: str | None = None,
    footprints: Footprints | None = None,
) -> Work:
    """What is left of an assignment, from its newest durable checkpoint on.

    `not_before` adds to the pause that the assignment itself keeps. `parent_weights` is the digest
    of the blob that training starts from, None: fresh weights, or the parent is not accepted yet.
    `footprints` know what was measured of its memory, None: nothing was.
    """
    spec, measured = row.spec, footprints or Footprints()
    return Work(
        assignment=row.assignment,
        words=describe(spec),
        flops=max(0.0, train_flops(spec) - durable_step * step_flops(spec)),
        memory_bytes={device: measured.memory_bytes(spec, device) for device in DEVICES},
        memory_factors={device: measured.factor(spec, device) for device in DEVICES},
        disk_bytes=disk_bytes(spec),
        needs_trust=spec.kind == "seed" or standard_of(row.schemes) != "better",
        excluded=row.standing.excluded,
        ran_out=ran_out,
        not_before=max(row.standing.not_before, not_before),
        inputs=frozenset({row.shard.digest, *([parent_weights] if parent_weights else [])}),
        owner=row.owner,
        shard=row.shard.digest,
        curve=_curve(spec),
        num_steps=spec.train.num_steps,
    )


@lru_cache(maxsize=65_536)
def _curve(spec: ExpertSpec) -> str:
    return spec.curve


def is_offerable(row: AssignmentRow, *, accepted: Collection[str]) -> bool:
    """Whether an assignment is open and what it starts from is there."""
    ready = row.spec.parent is None or row.spec.parent in accepted
    return row.state is AssignmentState.OPEN and ready


def expected_speed(worker: WorkerRow, observed: float | None) -> float:
    """FLOP/s to reckon with: what its last work really reached, else what it measured of itself."""
    speed = worker.capability.flops_per_second if observed is None else observed
    return min(max(speed, MIN_FLOPS_PER_SECOND), MAX_FLOPS_PER_SECOND)


def make_candidate(
    worker: WorkerRow,
    *,
    observed: float | None,
    proven: bool,
    trusted: Collection[str] | None,
    busy_until: float,
    now: float,
) -> Candidate:
    """A worker that works or asked for work. `trusted` None: everybody is."""
    stays = worker.capability.available_seconds
    return Candidate(
        worker=worker.worker,
        capability=worker.capability,
        speed=expected_speed(worker, observed),
        busy_until=busy_until,
        trusted=trusted is None or worker.worker in trusted,
        proven=proven,
        cached=worker.cached,
        available_until=None if stays is None else now + stays,
        device_number=worker.device_number,
    )


def make_running(
    row: AssignmentRow,
    attempt: Attempt,
    *,
    work: Work,
    speed: float,
    heartbeat_seconds: float,
    backed_up: bool,
) -> Running:
    """A lease in progress. `work` is what a backup would have to do.

    It ends when the steps after the last one told are done at `speed`. One that stands still for
    longer than a lease lasts, or some of its steps take, counts as later with every second, so that
    nobody waits for it.
    """
    spec = row.spec
    done = max(attempt.step, attempt.resumed_step)
    one_step = step_flops(spec) / speed
    quiet = max(LEASE_INTERVALS * heartbeat_seconds, QUIET_STEPS * one_step)
    return Running(
        work=work,
        worker=attempt.worker,
        finish=attempt.progressed_at + one_step * max(0, spec.train.num_steps - done),
        stalls_at=attempt.progressed_at + quiet,
        backed_up=backed_up,
        backup_of=row.backup_of,
        device_number=attempt.device_number,
    )


def plays_a_part(worker: WorkerRow, *, works: bool, heartbeat_seconds: float, now: float) -> bool:
    """Whether the scheduler may count on a worker: it works, or asked for work not long ago.

    One that only beats is left out: nothing may wait for a worker that does not ask.
    """
    if worker.banned or worker.draining:
        return False
    window = LEASE_INTERVALS * heartbeat_seconds
    return works or (worker.asked_at is not None and now - worker.asked_at <= window)


def retry_seconds(heartbeat_seconds: float) -> float:
    """When a worker that got no work is to ask again."""
    return heartbeat_seconds / 2


def asks_again_at(worker: WorkerRow, *, heartbeat_seconds: float, now: float) -> float:
    """When an idle worker is expected to be there for work."""
    if worker.asked_at is None or worker.asked_at == now:
        return now
    return worker.asked_at + retry_seconds(heartbeat_seconds)
