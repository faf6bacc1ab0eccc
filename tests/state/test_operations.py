"""What the operator does to workers and assignments, and that repeating it changes nothing."""

from itertools import product

import pytest

from coordinator.ledger import queries
from coordinator.lifecycle import Assignment, Holder, Refused
from coordinator.scoring.verification import Accepted
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.messages import Submission

ANNA, BERT = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
VERBS = ("retry", "cancel", "fail")


@pytest.fixture
def connection(ledger, make):
    """One transaction over a run with two workers."""
    with ledger.begin() as opened:
        queries.create_run(opened, run="r", coordinator="c", now=1.0)
        queries.add_shard(opened, make.shard("python", "train"), now=1.0)
        for worker in (ANNA, BERT):
            registration = queries.Registration(
                worker=worker,
                name="",
                software_version="0",
                capability=make.capability(),
                maddrs=(),
                token_digest=worker,
                token_expires_at=1e9,
                certificate_expires_at=1e9,
                allowed_at=0.0,
            )
            queries.register_worker(opened, registration, 1.0)
        yield opened


@pytest.fixture
def assignment(connection, make) -> str:
    shard = make.shard("python", "train").blob
    return queries.add_assignment(connection, make.spec(), shard=shard, schemes=(), now=1.0)


def start(connection, assignment: str, worker: str, now: float = 2.0) -> Holder:
    terms = queries.OfferTerms(assignment=assignment, worker=worker, free_memory_bytes=1, reason="")
    offered = queries.offer_assignment(connection, terms, now=now, heartbeat_seconds=10.0)
    assert isinstance(offered, queries.Offered)
    holder = Holder(worker=worker, fencing=offered.standing.fencing)
    started = queries.acknowledge_lease(
        connection, assignment, holder, now=now, heartbeat_seconds=10.0
    )
    assert isinstance(started, Assignment)
    return holder


def submit(connection, make, assignment: str, holder: Holder, now: float = 3.0) -> None:
    row = queries.get_assignment(connection, assignment)
    request = Submission(
        request_id="0" * 32,
        fencing=holder.fencing,
        manifest=make.blob(f"{assignment} by {holder.worker}"),
        tokens_per_second=1.0,
        train_seconds=1.0,
    )
    submitted = queries.submit_expert(
        connection, assignment, request, worker=holder.worker, now=now, heartbeat_seconds=10.0
    )
    assert isinstance(submitted, Assignment), submitted
    (announced,) = queries.announced_checkpoints(connection)
    manifest = make.manifest(row.spec, holder.worker)
    queries.mark_durable(connection, announced.checkpoint_id, manifest, now)


def accept(connection, assignment: str, holder: Holder, now: float = 4.0) -> None:
    decision = Accepted("good")
    queries.record_verification(
        connection, assignment, holder.fencing, decision, decision.reason, now
    )


def settle(connection, assignment: str, verb: str):
    return queries.settle_assignment(connection, assignment, verb, reason="why", now=9.0)


def state_of(connection, assignment: str) -> str:
    return queries.get_assignment(connection, assignment).state.value


@pytest.mark.parametrize(("first", "second"), list(product(VERBS, VERBS)))
def test_an_order_given_twice_writes_nothing_the_second_time(connection, assignment, first, second):
    for verb in (first, second):
        outcome = settle(connection, assignment, verb)
        before = queries.last_number(connection)
        assert settle(connection, assignment, verb) == outcome
        assert queries.last_number(connection) == before


def test_what_was_accepted_cannot_be_undone(connection, make, assignment):
    holder = start(connection, assignment, ANNA)
    submit(connection, make, assignment, holder)
    accept(connection, assignment, holder)
    for verb in VERBS:
        refused = settle(connection, assignment, verb)
        assert isinstance(refused, Refused)
        assert refused.code is ErrorCode.WRONG_STATE
    assert state_of(connection, assignment) == "accepted"


def test_an_original_that_its_backup_overtook_is_not_opened_again(connection, make, assignment):
    start(connection, assignment, ANNA)
    original = queries.get_assignment(connection, assignment)
    backup = queries.add_backup(connection, original, now=2.0)
    holder = start(connection, backup, BERT)
    submit(connection, make, backup, holder)
    accept(connection, backup, holder)
    assert state_of(connection, assignment) == "cancelled"
    refused = settle(connection, assignment, "retry")
    assert isinstance(refused, Refused)
    assert "accepted" in refused.message


@pytest.mark.parametrize("verb", ["cancel", "fail"])
def test_ending_an_original_ends_its_running_backup(connection, assignment, verb):
    start(connection, assignment, ANNA)
    original = queries.get_assignment(connection, assignment)
    backup = queries.add_backup(connection, original, now=2.0)
    start(connection, backup, BERT)
    settled = settle(connection, assignment, verb)
    assert isinstance(settled, queries.Settled)
    assert settled.also == (backup,)
    assert state_of(connection, backup) == "cancelled"
    for worker in (ANNA, BERT):
        assert queries.live_lease_of(connection, worker) is None


def test_a_failed_assignment_keeps_what_was_trained_and_goes_on_from_there(
    connection, make, assignment
):
    start(connection, assignment, ANNA)
    settle(connection, assignment, "fail")
    assert queries.live_lease_of(connection, ANNA) is None
    settled = settle(connection, assignment, "retry")
    assert isinstance(settled, queries.Settled)
    assert settled.row.state is AssignmentState.OPEN
    assert start(connection, assignment, ANNA, now=9.0).fencing == 2


def test_a_ban_leaves_the_leases_of_others_alone(connection, make, assignment):
    shard = make.shard("python", "train").blob
    other = queries.add_assignment(
        connection, make.spec(rng_seed=1), shard=shard, schemes=(), now=1.0
    )
    start(connection, assignment, ANNA)
    start(connection, other, BERT)
    marked = queries.treat_worker(connection, ANNA, "ban", reason="", now=5.0)
    assert marked is not None
    assert (marked.banned, marked.draining) == (True, False)
    assert (state_of(connection, assignment), state_of(connection, other)) == ("open", "running")
    before = queries.last_number(connection)
    assert queries.treat_worker(connection, ANNA, "ban", reason="", now=6.0) == marked
    assert queries.last_number(connection) == before


def test_an_unknown_worker_is_nobody_and_an_unknown_assignment_is_refused(connection):
    assert queries.treat_worker(connection, ANNA[:-1] + "C", "ban", reason="", now=1.0) is None
    refused = settle(connection, f"a{'0' * 16}", "cancel")
    assert isinstance(refused, Refused)
    assert refused.code is ErrorCode.UNKNOWN_ASSIGNMENT
