"""Which work may be offered, and whom the scheduler may wait for."""

from dataclasses import replace

import pytest

from coordinator.ledger.queries import AssignmentRow, Attempt, WorkerRow
from coordinator.lifecycle import Assignment
from coordinator.workload import (
    asks_again_at,
    expected_speed,
    is_offerable,
    make_candidate,
    make_running,
    make_work,
    plays_a_part,
)
from protocol.assignments import AssignmentState
from protocol.capability import MAX_FLOPS_PER_SECOND, MIN_FLOPS_PER_SECOND
from shared.sizing import step_flops, train_flops

NOW = 1000.0
HEARTBEAT = 10.0


@pytest.fixture
def row(make):
    def build(spec=None, backup_of=None, **standing) -> AssignmentRow:
        made = spec or make.spec()
        return AssignmentRow(
            standing=Assignment(assignment=f"a{made.digest[:16]}", **standing),
            spec=made,
            shard=make.blob("shard"),
            schemes=(),
            reason="",
            created_at=0.0,
            changed_at=0.0,
            backup_of=backup_of,
        )

    return build


@pytest.fixture
def worker(make):
    def build(name: str = "w", **more) -> WorkerRow:
        values = {
            "worker": name,
            "name": "",
            "software_version": "0",
            "capability": make.capability(flops_per_second=1e6),
            "maddrs": (),
            "token_expires_at": 0.0,
            "certificate_expires_at": 0.0,
            "banned": False,
            "registered_at": 0.0,
            "seen_at": NOW,
            "asked_at": NOW,
        }
        return WorkerRow(**{**values, **more})

    return build


def attempt_of(row: AssignmentRow, worker: str = "w", **more) -> Attempt:
    values = {
        "assignment": row.assignment,
        "fencing": 1,
        "worker": worker,
        "state": "running",
        "free_memory_bytes": 1,
        "offer_reason": "",
        "offered_at": NOW,
        "reason": "",
        "resumed_from": None,
        "resumed_step": 0,
        "step": 0,
        "loss": None,
        "tokens_per_second": 0.0,
        "started_at": NOW,
        "progressed_at": NOW,
    }
    return Attempt(**{**values, **more})


def running(row: AssignmentRow, attempt: Attempt, *, speed: float = 1e6):
    return make_running(
        row,
        attempt,
        work=make_work(row),
        speed=speed,
        heartbeat_seconds=HEARTBEAT,
        backed_up=False,
    )


def candidate(worker: WorkerRow, **more):
    values = {"observed": None, "proven": False, "trusted": None, "busy_until": NOW, "now": NOW}
    return make_candidate(worker, **{**values, **more})


def is_here(worker: WorkerRow, *, works: bool = False) -> bool:
    return plays_a_part(worker, works=works, heartbeat_seconds=HEARTBEAT, now=NOW)


def test_a_durable_checkpoint_lessens_what_is_left(row):
    half = row()
    assert make_work(half).flops == train_flops(half.spec)
    assert make_work(half, durable_step=10).flops == pytest.approx(train_flops(half.spec) / 2)


def test_work_waits_for_the_longer_of_its_own_pause_and_that_for_a_checkpoint(row):
    paused = row(not_before=NOW + 5)
    assert make_work(paused).not_before == NOW + 5
    assert make_work(paused, not_before=NOW + 9).not_before == NOW + 9


def test_a_seed_needs_trust_and_starts_from_its_shard_alone(row, make):
    seed, shard = row(), make.blob("shard").digest
    assert make_work(seed).needs_trust
    assert make_work(seed).inputs == {shard}
    expert = row(make.spec(parent=seed.spec.digest))
    assert not make_work(expert).needs_trust
    trial = replace(row(make.spec(parent=seed.spec.digest)), schemes=("dense trial",))
    assert make_work(trial).needs_trust, "nothing has to come of it for it to be accepted"
    assert make_work(expert).inputs == {shard}, "what the parent's weights are, nobody knows yet"
    weights = make.blob("weights").digest
    assert make_work(expert, parent_weights=weights).inputs == {shard, weights}


def test_only_open_work_with_an_accepted_parent_is_offered(row, make):
    seed = make.spec()
    child = row(make.spec(parent=seed.digest))
    assert is_offerable(row(), accepted=())
    assert not is_offerable(child, accepted=())
    assert is_offerable(child, accepted={seed.digest})
    for state in AssignmentState:
        assert is_offerable(row(state=state), accepted=()) is (state == "open")


def test_nothing_waits_for_a_worker_that_does_not_ask(worker):
    assert is_here(worker())
    assert is_here(worker(asked_at=NOW - 30))
    assert not is_here(worker(asked_at=NOW - 31))
    assert not is_here(worker(asked_at=None))
    assert is_here(worker(asked_at=None), works=True)


def test_nothing_waits_for_a_worker_that_may_not_work_or_is_to_take_no_more(worker):
    assert not is_here(worker(banned=True), works=True)
    assert not is_here(worker(draining=True), works=True)


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, 0), (NOW, 0), (NOW - 2, 3), (NOW - 5, 0), (NOW - 9, -4)]
)
def test_an_idle_worker_is_expected_when_it_was_told_to_ask_again(worker, asked, expected):
    again = asks_again_at(worker(asked_at=asked), heartbeat_seconds=HEARTBEAT, now=NOW)
    assert again == NOW + expected


def test_a_worker_is_busy_for_what_its_own_speed_says_is_left(row):
    one = row(state=AssignmentState.RUNNING)
    half = running(one, attempt_of(one, step=10, progressed_at=NOW - 3))
    assert half.finish == pytest.approx(NOW - 3 + 10 * step_flops(one.spec) / 1e6)
    fresh = running(one, attempt_of(one))
    assert fresh.finish == pytest.approx(NOW + train_flops(one.spec) / 1e6)


def test_what_was_done_before_the_lease_is_not_done_again(row):
    one = row(state=AssignmentState.RUNNING)
    resumed = running(one, attempt_of(one, resumed_step=15))
    assert resumed.finish == pytest.approx(NOW + 5 * step_flops(one.spec) / 1e6)


@pytest.mark.parametrize("told", [5e-324, 1e308])
def test_a_speed_that_no_machine_has_is_not_believed(worker, told):
    speed = expected_speed(worker(), told)
    assert MIN_FLOPS_PER_SECOND <= speed <= MAX_FLOPS_PER_SECOND


def test_what_a_worker_did_counts_more_than_what_it_measured(worker):
    assert expected_speed(worker(), None) == 1e6
    assert expected_speed(worker(), 3e6) == 3e6
    assert candidate(worker(), observed=3e6).speed == 3e6


def test_a_lease_stands_still_after_a_lease_or_some_steps_without_progress(row):
    one = row(state=AssignmentState.RUNNING)
    quick = running(one, attempt_of(one, progressed_at=NOW - 8), speed=1e12)
    assert quick.stalls_at == NOW - 8 + 30
    slow = running(one, attempt_of(one), speed=step_flops(one.spec) / 100)
    assert slow.stalls_at == pytest.approx(NOW + 300)


def test_trust_is_by_name_unless_everybody_is(worker):
    assert candidate(worker("a")).trusted
    assert not candidate(worker("a"), trusted=("b",)).trusted
    assert candidate(worker("b"), trusted=("b",)).trusted


def test_a_worker_says_how_long_it_stays(worker, make):
    stays = worker(capability=make.capability(available_seconds=600.0))
    assert candidate(stays).available_until == NOW + 600
    assert candidate(worker()).available_until is None
