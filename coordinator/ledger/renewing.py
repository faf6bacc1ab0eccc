"""Heartbeats of a lease's holder: progress renews it, and a trainer that stands still loses it."""

from sqlalchemy import Connection

from coordinator import lifecycle
from coordinator.ledger.assignments import AssignmentRow, find_assignment
from coordinator.ledger.attempts import Attempt, find_attempt
from coordinator.ledger.decisions import (
    explained,
    facts_of,
    impossible_step,
    named_training,
    unknown,
    update_progress,
)
from coordinator.ledger.devices import device_speed
from coordinator.ledger.entries import record
from coordinator.ledger.starting import acknowledge, note_start
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.messages import AssignmentHeartbeat
from shared.sizing import step_flops


def renew_lease(  # noqa: PLR0913 - who beats, what it said, and by what it is judged
    connection: Connection,
    assignment: str,
    beat: AssignmentHeartbeat,
    *,
    worker: str,
    flops_per_second: float,
    now: float,
    heartbeat_seconds: float,
) -> Assignment | Refused:
    """A heartbeat: progress is noted, a newly named checkpoint is to be collected.

    The first one acknowledges an offer. A trainer that stands still loses its lease in the end,
    however often its worker beats; `flops_per_second` is what its worker's first device measured,
    to judge the time before the first step; what another one measured, the ledger knows.
    """
    row = find_assignment(connection, assignment)
    if row is None:
        return unknown(assignment)
    impossible = impossible_step(beat.checkpoint_step, row.spec.train.num_steps)
    if impossible is not None:
        return impossible
    holder = Holder(worker=worker, fencing=beat.fencing)
    running = acknowledge(connection, row, holder, now=now, heartbeat_seconds=heartbeat_seconds)
    if isinstance(running, Refused):
        return explained(connection, assignment, holder, running)
    attempt = find_attempt(connection, assignment, beat.fencing)
    assert attempt is not None, f"{assignment} has no attempt {beat.fencing}"
    attempt = note_start(connection, row, attempt, beat.first_step, now)
    if attempt.device_number > 0:
        measured = device_speed(connection, worker, attempt.device_number)
        flops_per_second = flops_per_second if measured is None else measured
    advanced = attempt.step < beat.step <= row.spec.train.num_steps
    last = (beat.step, now) if advanced else (attempt.step, attempt.progressed_at)
    stalls_at = last[1] + lifecycle.stall_seconds(
        step_seconds=_step_seconds(attempt, row, last, flops_per_second),
        heartbeat_seconds=heartbeat_seconds,
        has_stepped=last[0] > attempt.resumed_step,
    )
    after = lifecycle.renew(
        running, holder, now=now, heartbeat_seconds=heartbeat_seconds, stalls_at=stalls_at
    )
    if isinstance(after, Refused):
        return after
    values = {"expires_at": after.expires_at, "step": last[0], "progressed_at": last[1]}
    values |= {"loss": beat.loss, "tokens_per_second": beat.tokens_per_second}
    update_progress(connection, after, values)
    named = named_training(connection, after, beat.checkpoint, beat.checkpoint_step, now)
    if named:
        record(connection, "announce", *named, facts=facts_of(after), now=now)
    return after


def _step_seconds(
    attempt: Attempt, row: AssignmentRow, last: tuple[int, float], flops_per_second: float
) -> float:
    """Seconds a step: measured in this attempt, else expected of the worker's speed."""
    step, progressed_at = last
    if step > attempt.resumed_step:
        return (progressed_at - attempt.started_at) / (step - attempt.resumed_step)
    return step_flops(row.spec) / flops_per_second
