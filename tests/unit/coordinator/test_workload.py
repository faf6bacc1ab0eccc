"""Which work may be offered, and whom the scheduler may wait for."""

import pytest

from coordinator.ledger.queries import AssignmentRow, Attempt, WorkerRow
from coordinator.lifecycle import Assignment
from coordinator.workload import Workload, candidates, make_work, offerable, unstarted
from protocol.assignments import AssignmentState
from shared.sizing import train_flops

NOW = 1000.0


@pytest.fixture
def row(make):
    def build(spec=None, **standing) -> AssignmentRow:
        made = spec or make.spec()
        return AssignmentRow(
            standing=Assignment(assignment=f"a{made.digest[:16]}", **standing),
            spec=made,
            shard=make.blob("shard"),
            schemes=(),
            reason="",
            created_at=0.0,
            changed_at=0.0,
        )

    return build


@pytest.fixture
def worker(make):
    def build(name: str, *, asked_at: float | None = NOW, banned: bool = False) -> WorkerRow:
        return WorkerRow(
            worker=name,
            name="",
            software_version="0",
            capability=make.capability(flops_per_second=1e6),
            maddrs=(),
            token_expires_at=0.0,
            certificate_expires_at=0.0,
            banned=banned,
            registered_at=0.0,
            seen_at=NOW,
            asked_at=asked_at,
        )

    return build


def load(*, rows=(), attempts=(), workers=(), **more) -> Workload:
    values = {
        "accepted": (),
        "durable_steps": {},
        "uncollected_steps": {},
        "ran_out": {},
        "heartbeat_seconds": 10.0,
        "now": NOW,
        **more,
    }
    return Workload(
        assignments=tuple(rows), attempts=tuple(attempts), workers=tuple(workers), **values
    )


def attempt_of(row: AssignmentRow, worker: str, **more) -> Attempt:
    values = {
        "assignment": row.assignment,
        "fencing": 1,
        "worker": worker,
        "state": "running",
        "free_memory_bytes": 1,
        "offer_reason": "",
        "offered_at": NOW,
        "step": 0,
        "loss": None,
        "tokens_per_second": 0.0,
        "progressed_at": NOW,
        "reason": "",
    }
    return Attempt(**{**values, **more})


def test_a_durable_checkpoint_lessens_what_is_left(row):
    half = row()
    work = make_work(load(durable_steps={half.assignment: 10}), half)
    assert work.flops == pytest.approx(train_flops(half.spec) / 2)


def test_only_open_work_with_an_accepted_parent_and_no_pause_is_offered(row, make):
    seed = make.spec()
    rows = [
        row(state=AssignmentState.RUNNING),
        row(make.spec(parent=seed.digest)),
        row(make.spec(rng_seed=1), not_before=NOW + 1),
    ]
    assert offerable(load(rows=rows)) == []
    assert len(unstarted(load(rows=rows))) == 2
    assert len(offerable(load(rows=rows, accepted=(seed.digest,)))) == 1
    assert len(offerable(load(rows=rows, now=NOW + 1))) == 1


def test_an_offer_waits_for_a_newer_checkpoint_on_its_way_only(row):
    one = row()
    on_its_way = {one.assignment: 8}
    assert offerable(load(rows=[one], uncollected_steps=on_its_way)) == []
    assert offerable(
        load(rows=[one], uncollected_steps=on_its_way, durable_steps={one.assignment: 8})
    )


def test_nothing_waits_for_a_worker_that_does_not_ask(worker):
    workers = [
        worker("never", asked_at=None),
        worker("long ago", asked_at=NOW - 31),
        worker("banned", banned=True),
        worker("now"),
    ]
    assert [c.worker for c in candidates(load(workers=workers), trusted=None)] == ["now"]


@pytest.mark.parametrize(
    ("asked", "expected"), [(NOW, 0), (NOW - 2, 3), (NOW - 5, 0), (NOW - 9, 4)]
)
def test_an_idle_worker_is_expected_when_it_was_told_to_ask_again(worker, asked, expected):
    (only,) = candidates(load(workers=[worker("w", asked_at=asked)]), trusted=None)
    assert only.busy_until == NOW + expected


def test_a_worker_is_busy_for_what_its_own_speed_says_is_left(row, worker):
    one = row(state=AssignmentState.RUNNING)
    measured = attempt_of(one, "w", step=10, tokens_per_second=64.0)
    (only,) = candidates(load(rows=[one], workers=[worker("w")], attempts=[measured]), trusted=None)
    assert only.busy_until == NOW + 10 * one.spec.train.tokens_per_step / 64.0
    fresh = attempt_of(one, "w")
    (only,) = candidates(load(rows=[one], workers=[worker("w")], attempts=[fresh]), trusted=None)
    assert only.busy_until == pytest.approx(NOW + train_flops(one.spec) / 1e6)


@pytest.mark.parametrize("told", [5e-324, 1e308])
def test_a_speed_that_no_trainer_has_is_not_believed(row, worker, told):
    one = row(state=AssignmentState.RUNNING)
    lied = attempt_of(one, "w", tokens_per_second=told)
    (only,) = candidates(load(rows=[one], workers=[worker("w")], attempts=[lied]), trusted=None)
    assert only.busy_until == pytest.approx(NOW + train_flops(one.spec) / 1e6)


def test_a_lease_that_stands_still_is_waited_for_less_and_less(row, worker):
    one = row(state=AssignmentState.RUNNING)
    stuck = attempt_of(one, "w", step=20, tokens_per_second=64.0, progressed_at=NOW - 130)
    (only,) = candidates(load(rows=[one], workers=[worker("w")], attempts=[stuck]), trusted=None)
    assert only.busy_until == NOW + 100


def test_trust_is_by_name_unless_everybody_is(worker):
    workers = [worker("a"), worker("b")]
    some = candidates(load(workers=workers), trusted=("b",))
    assert [c.trusted for c in some] == [False, True]
    assert all(c.trusted for c in candidates(load(workers=workers), trusted=None))
