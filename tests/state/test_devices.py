"""Workers of several devices: each holds a lease, once some of the worker's work was accepted."""

from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from story import ANNA, BERT, HEARTBEAT, Story

from coordinator.ledger import Ledger, queries
from coordinator.ledger.rebuild import verify_ledger
from coordinator.ledger.schema import MIGRATIONS
from coordinator.lifecycle import Assignment, Holder
from coordinator.scoring.verification import Accepted, Rejected


class Devices(Story):
    """The same, with several assignments and devices that have numbers."""

    def open(self, rng_seed: int) -> str:
        spec = self.make.spec(rng_seed=rng_seed)
        blob = self.make.shard("python", "train").blob
        return self.write(
            lambda connection, now: queries.add_assignment(
                connection, spec, shard=blob, schemes=("A",), now=now
            )
        )

    def begin(self, assignment: str, device_number: int, worker: str = ANNA) -> Assignment:
        def work(connection: Any, now: float) -> Any:
            terms = queries.OfferTerms(
                assignment=assignment,
                worker=worker,
                free_memory_bytes=1,
                reason="",
                device_number=device_number,
            )
            offered = queries.offer_assignment(
                connection, terms, now=now, heartbeat_seconds=HEARTBEAT
            )
            holder = Holder(worker=worker, fencing=offered.standing.fencing)
            return queries.acknowledge_lease(
                connection, assignment, holder, now=now, heartbeat_seconds=HEARTBEAT
            )

        return self.write(work)

    def held(self, worker: str = ANNA) -> list[tuple[int, str]]:
        with self.ledger.read() as connection:
            leases = queries.live_leases_of(connection, worker)
            return [(one.device_number, one.assignment) for one in leases]


@pytest.fixture
def story(ledger: Ledger, make: Any) -> Devices:
    return Devices(ledger, make)


@pytest.fixture
def proven(story: Devices) -> Devices:
    """Anna's first work was accepted."""
    story.hand_in(story.start(ANNA, story.original))
    return story


def test_a_key_without_accepted_work_holds_one_lease_whatever_device_it_names(story):
    first, second = story.open(1), story.open(2)
    story.begin(first, 0)
    for device_number in (0, 1, 7):
        with pytest.raises(IntegrityError, match=r"(?i)unique"):
            story.begin(second, device_number)
    assert story.held() == [(0, first)]
    story.begin(second, 3, worker=BERT)


def test_rejected_work_proves_nothing(story):
    story.hand_in(story.start(ANNA, story.original), Rejected("worse"))
    first, second = story.open(1), story.open(2)
    story.begin(first, 1)
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        story.begin(second, 0)


def test_each_device_of_a_proven_worker_holds_one_lease(proven):
    first, second, third = proven.open(1), proven.open(2), proven.open(3)
    proven.begin(first, 0)
    proven.begin(second, 1)
    assert proven.held() == [(0, first), (1, second)]
    for device_number in (0, 1):
        with pytest.raises(IntegrityError, match=r"(?i)unique"):
            proven.begin(third, device_number)


def test_a_lease_from_before_the_first_acceptance_is_none_of_a_newcomer_s_that_come_after(story):
    """What was offered to a newcomer stays; the next are offered to who is none any more."""
    handed_in, first, second = story.start(ANNA, story.original), story.open(1), story.open(2)
    story.submit(handed_in)
    story.begin(first, 0)
    story.collect(ANNA)
    story.write(
        lambda connection, now: queries.record_verification(
            connection, handed_in.assignment, handed_in.fencing, Accepted(), "", now
        )
    )
    story.begin(second, 1)
    assert story.held() == [(0, first), (1, second)]


def test_two_leases_of_a_worker_run_out_and_are_renewed_each_by_itself(proven):
    one, other = proven.open(1), proven.open(2)
    proven.begin(one, 0)
    renewed = proven.begin(other, 1)
    proven.now += 2.5 * HEARTBEAT
    assert isinstance(proven.beat(renewed, 3), Assignment)
    proven.now += HEARTBEAT
    proven.write(queries.expire_leases)
    assert proven.held() == [(1, other)]
    again = proven.begin(one, 0)
    assert again.fencing == 2
    assert proven.row(other).standing.fencing == 1


def test_a_ban_ends_every_lease_of_the_worker_and_no_other(proven):
    first, second, third = proven.open(1), proven.open(2), proven.open(3)
    proven.begin(first, 0)
    proven.begin(second, 1)
    proven.begin(third, 0, worker=BERT)
    proven.write(
        lambda connection, now: queries.treat_worker(connection, ANNA, "ban", reason="", now=now)
    )
    assert proven.held() == []
    assert proven.held(BERT) == [(0, third)]
    assert {proven.row(name).state.value for name in (first, second)} == {"open"}


def test_credit_is_by_attempt_whatever_the_device(proven):
    first, second = proven.open(1), proven.open(2)
    leases = [proven.begin(first, 0), proven.begin(second, 1)]
    for lease in leases:
        proven.spec = proven.row(lease.assignment).spec
        proven.hand_in(lease)
    earned = proven.earned()[ANNA]
    assert [row.assignment for row in earned] == [proven.original, first, second]
    assert len({row.credit for row in earned}) == 1


def test_submissions_are_counted_by_device_and_together(proven):
    for number in (0, 1):
        for rng_seed in range(number + 1):
            proven.submit(proven.begin(proven.open(10 * number + rng_seed + 1), number))
    with proven.ledger.read() as connection:
        counts = [queries.count_uncollected(connection, ANNA, number) for number in (0, 1, 2)]
        assert counts == [1, 2, 0]
        assert queries.count_uncollected(connection, ANNA) == 3


def test_what_a_device_offers_and_asks_is_kept_apart_from_the_first_ones(proven, make):
    strong = make.capability(free_memory_bytes=9_000_000_000)
    proven.write(lambda connection, _: queries.see_device(connection, ANNA, 2, strong))
    proven.write(
        lambda connection, now: queries.set_asked(
            connection, ANNA, now, waits_since=now - 5.0, device_number=2
        )
    )
    with proven.ledger.read() as connection:
        first, third = queries.these_workers(connection, [ANNA])
        assert first.asked_at is None
        assert (first.device_number, first.seat) == (0, ANNA)
        assert (third.device_number, third.seat, third.capability) == (2, f"{ANNA}#2", strong)
        assert (third.asked_at, third.waits_since) == (proven.now, proven.now - 5.0)
        assert queries.as_device(connection, first, 2) == third
        assert queries.as_device(connection, first, 0) == first
        assert queries.as_device(connection, third, 1).asked_at is None
        found = [row.seat for row in queries.active_workers(connection, since=0.0)]
        assert found == [ANNA, third.seat, BERT]
        assert {row.seat for row in queries.seen_workers(connection, since=0.0)} == set(found)


def test_speeds_and_lack_of_memory_are_told_apart_by_device(proven):
    slow, fast = proven.begin(proven.open(1), 0), proven.begin(proven.open(2), 1)
    for step in range(1, 8):
        proven.now += 10.0
        proven.beat(fast, 2 * step)
        proven.beat(slow, step)
    with proven.ledger.read() as connection:
        speeds = queries.observed_speeds(connection, [ANNA])
        assert speeds == queries.observed_speeds(connection)
    assert speeds[f"{ANNA}#1"] > 1.5 * speeds[ANNA]


def test_the_entries_alone_give_the_devices_again(proven):
    proven.begin(proven.open(1), 0)
    proven.begin(proven.open(2), 1)
    with proven.ledger.read() as connection:
        assert verify_ledger(connection).holds


def test_a_ledger_of_workers_with_one_device_each_goes_on(database, make):
    ledger = Ledger(database)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with ledger.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.execute(text("INSERT INTO specs VALUES ('s', '{}')"))
        connection.execute(text(f"INSERT INTO workers VALUES ('{ANNA}', '', '0', 0, 0, 1)"))
        connection.execute(
            text(
                "INSERT INTO assignments (assignment, spec, kind, shard, schemes, state, fencing, "
                "not_before, num_returns, excluded, reason, created_at, changed_at) VALUES ('a1', "
                "'s', 'seed', '', '[]', 'running', 1, 0, 0, '[]', '', 1, 1)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO attempts (assignment, fencing, worker, state, free_memory_bytes, "
                "offer_reason, offered_at, resumed_step, reason) VALUES ('a1', 1, "
                f"'{ANNA}', 'running', 1, '', 1, 0, '')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO progress (assignment, fencing, step, tokens_per_second, started_at, "
                "progressed_at) VALUES ('a1', 1, 0, 0, 1, 1)"
            )
        )
    ledger.create()
    with ledger.read() as connection:
        (held,) = queries.live_leases_of(connection, ANNA)
        assert (held.assignment, held.device_number, held.seat) == ("a1", 0, ANNA)
        newcomer = connection.execute(text("SELECT newcomer FROM attempts")).scalar()
        assert newcomer == 1
    ledger.close()
