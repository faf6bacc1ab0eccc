"""Promises of the lifecycle, as a state machine and one by one."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator import lifecycle
from coordinator.lifecycle import Assignment, Holder, Refused
from protocol.assignments import FINAL, LIVE, AssignmentState
from protocol.errors import ErrorCode

HEARTBEAT = 10.0
WORKERS = ("anna", "bert", "cleo")


def offered(assignment: Assignment, worker: str = "anna", *, now: float = 0.0) -> Assignment:
    after = lifecycle.offer(assignment, worker=worker, now=now, heartbeat_seconds=HEARTBEAT)
    assert isinstance(after, Assignment)
    return after


def running(worker: str = "anna", *, now: float = 0.0) -> Assignment:
    first = offered(Assignment(assignment="a"), worker, now=now)
    after = lifecycle.acknowledge(
        first, Holder(worker=worker, fencing=1), now=now, heartbeat_seconds=HEARTBEAT
    )
    assert isinstance(after, Assignment)
    return after


def submitted(worker: str = "anna") -> Assignment:
    after = lifecycle.submit(
        running(worker), Holder(worker=worker, fencing=1), now=1.0, heartbeat_seconds=HEARTBEAT
    )
    assert isinstance(after, Assignment)
    return after


def test_an_offer_lasts_two_heartbeats_and_a_lease_three():
    assert offered(Assignment(assignment="a"), now=100.0).expires_at == 120.0
    assert running(now=100.0).expires_at == 130.0


def test_late_heartbeat_does_not_revive_an_expired_lease():
    late = lifecycle.renew(
        running(), Holder(worker="anna", fencing=1), now=30.0, heartbeat_seconds=HEARTBEAT
    )
    assert isinstance(late, Refused)
    assert late.code is ErrorCode.LEASE_LOST


@pytest.mark.parametrize("worker", ["anna", "bert"])
def test_an_old_fencing_number_loses_whoever_holds_the_lease_now(worker):
    expired = lifecycle.expire(running(), now=30.0)
    assert isinstance(expired, Assignment)
    again = offered(replace(expired, not_before=0.0), worker, now=40.0)
    old = lifecycle.submit(
        again, Holder(worker="anna", fencing=1), now=41.0, heartbeat_seconds=HEARTBEAT
    )
    assert isinstance(old, Refused)
    assert old.code is ErrorCode.LEASE_LOST


def test_a_repeated_acknowledgement_changes_nothing():
    once = running()
    holder = Holder(worker="anna", fencing=1)
    assert lifecycle.acknowledge(once, holder, now=5.0, heartbeat_seconds=HEARTBEAT) == once


def test_a_lease_is_not_expired_before_its_time():
    early = lifecycle.expire(running(), now=29.9)
    assert isinstance(early, Refused)


def test_a_rejected_worker_is_never_offered_the_assignment_again():
    after = lifecycle.reject(submitted("anna"), fencing=1, now=2.0)
    assert isinstance(after, Assignment)
    refused = lifecycle.offer(after, worker="anna", now=99.0, heartbeat_seconds=HEARTBEAT)
    assert isinstance(refused, Refused)
    assert refused.code is ErrorCode.FORBIDDEN
    assert offered(after, "bert", now=99.0).fencing == 2


def test_a_returned_assignment_pauses_ever_longer_up_to_a_minute():
    pauses = [lifecycle.backoff_seconds(number) for number in range(1, 200)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0
    back = lifecycle.release(running(), Holder(worker="anna", fencing=1), now=4.0)
    assert isinstance(back, Assignment)
    assert isinstance(
        lifecycle.offer(back, worker="bert", now=4.4, heartbeat_seconds=HEARTBEAT), Refused
    )
    assert offered(back, "bert", now=4.5).state is AssignmentState.OFFERED


def test_a_collected_submission_no_longer_runs_out():
    waiting = submitted()
    assert lifecycle.expired(waiting, 1e9)
    held = lifecycle.collected(waiting, fencing=1)
    assert isinstance(held, Assignment)
    assert not lifecycle.expired(held, 1e9)


def test_only_the_submitter_keeps_its_submission_alive():
    waiting = submitted("anna")
    same = lifecycle.keep_submission(waiting, worker="bert", now=50.0, heartbeat_seconds=HEARTBEAT)
    kept = lifecycle.keep_submission(waiting, worker="anna", now=50.0, heartbeat_seconds=HEARTBEAT)
    assert same == waiting
    assert kept.expires_at == 50.0 + lifecycle.SUBMISSION_INTERVALS * HEARTBEAT


def test_a_submission_that_nobody_could_collect_is_given_up_however_alive_its_worker():
    waiting = submitted("anna")
    assert waiting.collect_by is not None
    last = lifecycle.keep_submission(
        waiting, worker="anna", now=waiting.collect_by - 1, heartbeat_seconds=HEARTBEAT
    )
    assert last.expires_at == waiting.collect_by
    after = lifecycle.expire(last, now=waiting.collect_by)
    assert isinstance(after, Assignment)
    assert (after.state, after.excluded) == (AssignmentState.OPEN, {"anna"})
    assert after.collect_by is None


def test_a_worker_that_left_before_its_submission_was_collected_may_come_back():
    waiting = submitted("anna")
    assert waiting.expires_at is not None
    after = lifecycle.expire(waiting, now=waiting.expires_at)
    assert isinstance(after, Assignment)
    assert after.excluded == frozenset()


def test_downtime_shifts_the_expiry_and_nothing_else():
    before = running()
    after = lifecycle.extend(before, 25.0)
    assert after.expires_at == 55.0
    assert replace(after, expires_at=before.expires_at) == before


def test_a_trainer_may_stand_still_for_many_heartbeats_or_many_of_its_own_steps():
    quick = lifecycle.stall_seconds(step_seconds=0.1, heartbeat_seconds=HEARTBEAT, has_stepped=True)
    slow = lifecycle.stall_seconds(step_seconds=60.0, heartbeat_seconds=HEARTBEAT, has_stepped=True)
    first = lifecycle.stall_seconds(
        step_seconds=60.0, heartbeat_seconds=HEARTBEAT, has_stepped=False
    )
    assert quick == lifecycle.STALL_INTERVALS * HEARTBEAT
    assert slow == lifecycle.STALL_STEPS * 60.0
    assert first == lifecycle.FIRST_STEP_FACTOR * slow


def test_heartbeats_without_progress_renew_a_lease_up_to_its_stall_deadline_only():
    one, holder = running(), Holder(worker="anna", fencing=1)
    for now in (10.0, 20.0, 40.0, 60.0):
        after = lifecycle.renew(one, holder, now=now, heartbeat_seconds=HEARTBEAT, stalls_at=65.0)
        assert isinstance(after, Assignment)
        one = after
    assert one.expires_at == 65.0
    late = lifecycle.renew(one, holder, now=65.0, heartbeat_seconds=HEARTBEAT, stalls_at=65.0)
    assert isinstance(late, Refused)


@pytest.mark.parametrize(
    ("failed_by", "proven", "broken"),
    [
        (["anna", "bert", "anna"], {"anna", "bert"}, True),
        (["anna", "bert"], {"anna", "bert"}, False),
        (["anna"] * 9, {"anna"}, False),
        (["anna", "mallory", "bert"], {"anna", "bert"}, False),
        (["mallory", "oscar"] * 9, set(), False),
    ],
    ids=["proven agree", "too few", "one machine", "one is not proven", "nobody is proven"],
)
def test_work_is_broken_when_enough_proven_workers_fail_alike(failed_by, proven, broken):
    assert lifecycle.is_broken(failed_by, proven=proven, max_attempts=3) is broken


class AnyHistory(RuleBasedStateMachine):
    """One assignment, three workers that say anything at any time under any fencing number."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.current = Assignment(assignment="a")
        self.offers: list[tuple[str, int]] = []
        self.ended: set[int] = set()
        self.excluded: set[str] = set()

    def go(self, after: Assignment | Refused) -> bool:
        if isinstance(after, Refused):
            return False
        assert self.current.state not in FINAL
        assert after.fencing >= self.current.fencing
        self.current = after
        return True

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.sampled_from(WORKERS))
    def offer(self, worker: str) -> None:
        before = self.current.fencing
        after = lifecycle.offer(
            self.current, worker=worker, now=self.now, heartbeat_seconds=HEARTBEAT
        )
        if self.go(after):
            assert self.current.fencing == before + 1
            assert worker not in self.excluded
            self.offers.append((worker, self.current.fencing))

    @rule(
        act=st.sampled_from(["acknowledge", "renew", "submit", "release"]),
        worker=st.sampled_from(WORKERS),
        back=st.integers(0, 2),
    )
    def speak(self, act: str, worker: str, back: int) -> None:
        fencing = max(1, self.current.fencing - back)
        holder = Holder(worker=worker, fencing=fencing)
        if act == "release":
            after = lifecycle.release(self.current, holder, now=self.now)
        else:
            after = getattr(lifecycle, act)(
                self.current, holder, now=self.now, heartbeat_seconds=HEARTBEAT
            )
        held = (
            self.current.state in LIVE
            and (self.current.worker, self.current.fencing) == (worker, fencing)
            and not lifecycle.expired(self.current, self.now)
        )
        if self.go(after):
            assert held
            assert fencing not in self.ended
            if act == "release":
                self.ended.add(fencing)

    @rule()
    def expire(self) -> None:
        fencing, due = self.current.fencing, lifecycle.expired(self.current, self.now)
        assert self.go(lifecycle.expire(self.current, now=self.now)) is due
        if due:
            self.ended.add(fencing)

    @rule(back=st.integers(0, 1), accept=st.booleans())
    def verify(self, back: int, accept: bool) -> None:
        fencing, worker = max(0, self.current.fencing - back), self.current.worker
        after = (
            lifecycle.accept(self.current, fencing=fencing)
            if accept
            else lifecycle.reject(self.current, fencing=fencing, now=self.now)
        )
        if self.go(after):
            assert fencing == self.current.fencing
            self.ended.add(fencing)
            if not accept:
                assert worker is not None
                self.excluded.add(worker)

    @invariant()
    def at_most_one_lease_lives_and_it_is_the_newest(self) -> None:
        if self.current.state in LIVE:
            assert (self.current.worker, self.current.fencing) == self.offers[-1]
            assert self.current.expires_at is not None

    @invariant()
    def fencing_numbers_strictly_grow(self) -> None:
        numbers = [fencing for _, fencing in self.offers]
        assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def an_open_assignment_belongs_to_nobody(self) -> None:
        if self.current.state is AssignmentState.OPEN:
            assert self.current.worker is None
            assert self.current.expires_at is None


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
