"""The ledger: what its schema refuses, and what its queries keep true."""

import threading
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from coordinator.ledger import Ledger, LedgerError, queries, tables
from coordinator.ledger.failing import Failing
from coordinator.ledger.workers import Registration
from coordinator.lifecycle import Assignment, Holder
from coordinator.scoring.verification import Accepted, Rejected
from protocol.messages import AssignmentHeartbeat, Release, Submission

ANNA, BERT = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44


def register(connection, worker: str, make) -> None:
    registration = Registration(
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
    queries.register_worker(connection, registration, 1.0)


@pytest.fixture
def spec(ledger, make):
    made = make.spec()
    with ledger.begin() as connection:
        queries.create_run(connection, run="r", coordinator="c", now=1.0)
        for worker in (ANNA, BERT):
            register(connection, worker, make)
        for split in ("train", "gate"):
            queries.add_shard(connection, make.shard("python", split), now=1.0)
        queries.add_assignment(
            connection, made, shard=make.shard("python", "train").blob, schemes=("A",), now=1.0
        )
    return made


def offer(connection, spec, worker: str = ANNA, now: float = 10.0) -> Assignment:
    terms = queries.OfferTerms(
        assignment=f"a{spec.digest[:16]}", worker=worker, free_memory_bytes=1, reason=""
    )
    offered = queries.offer_assignment(connection, terms, now=now, heartbeat_seconds=10.0)
    assert isinstance(offered, queries.Offered)
    return offered.standing


def start(connection, spec, worker: str = ANNA, now: float = 10.0) -> Assignment:
    held = offer(connection, spec, worker, now)
    after = queries.acknowledge_lease(
        connection,
        held.assignment,
        Holder(worker=worker, fencing=held.fencing),
        now=now,
        heartbeat_seconds=10.0,
    )
    assert isinstance(after, Assignment)
    return after


def beat(connection, held: Assignment, *, now: float, step: int, checkpoint: Any) -> None:
    message = AssignmentHeartbeat(
        fencing=held.fencing,
        step=step,
        loss=None,
        tokens_per_second=1.0,
        checkpoint=checkpoint,
        checkpoint_step=step,
    )
    after = queries.renew_lease(
        connection,
        held.assignment,
        message,
        worker=held.worker or "",
        flops_per_second=1e9,
        now=now,
        heartbeat_seconds=10.0,
    )
    assert isinstance(after, Assignment)


def hold(connection, make, spec, *, step: int | None, now: float) -> tuple[str, ...]:
    (row,) = queries.announced_checkpoints(connection)
    manifest = make.manifest(spec, row.worker, step=step)
    return queries.mark_durable(connection, row.checkpoint_id, manifest, now)


def resumed(connection, held: Assignment):
    found = queries.resume_of(connection, held.assignment, None)
    return found and found.manifest


def test_a_failed_transaction_leaves_nothing_behind(ledger, spec, make):
    def fail() -> None:
        with ledger.begin() as connection:
            offer(connection, spec)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    with ledger.read() as connection:
        (row,) = queries.all_assignments(connection)
        assert row.state == "open"
        assert "offer" not in [entry.kind for entry in queries.read_entries(connection)]


def test_the_schema_refuses_a_second_live_lease_of_an_assignment(ledger, spec):
    with ledger.begin() as connection:
        offer(connection, spec)
    row = {
        "assignment": f"a{spec.digest[:16]}",
        "fencing": 2,
        "worker": BERT,
        "state": "running",
        "free_memory_bytes": 1,
        "offer_reason": "",
        "offered_at": 1.0,
        "resumed_step": 0,
        "reason": "",
    }
    with (
        pytest.raises(IntegrityError, match=r"(?i)unique"),
        ledger.begin() as connection,
    ):
        connection.execute(tables.attempts.insert().values(**row))


def test_the_schema_refuses_a_second_live_lease_of_a_worker(ledger, spec, make):
    with ledger.begin() as connection:
        other = make.spec(rng_seed=1)
        queries.add_assignment(
            connection, other, shard=make.shard("python", "train").blob, schemes=(), now=1.0
        )
        offer(connection, spec)
    with (
        pytest.raises(IntegrityError, match=r"(?i)unique"),
        ledger.begin() as connection,
    ):
        offer(connection, other)


def test_writers_from_many_threads_lose_no_update(ledger, spec):
    other = Ledger(ledger.url.render_as_string(hide_password=False))

    def work(mine: Ledger) -> None:
        for _ in range(10):
            with mine.begin() as connection:
                number = queries.role_beats(connection).get("scorer", 0.0)
                queries.beat_role(connection, "scorer", number + 1)

    threads = [
        threading.Thread(target=work, args=(mine,)) for mine in (ledger, other) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    with ledger.read() as connection:
        assert queries.role_beats(connection)["scorer"] == 40


def test_equal_specs_are_one_assignment_that_several_schemes_need(ledger, spec, make):
    shard = make.shard("python", "train").blob
    with ledger.begin() as connection:
        queries.add_assignment(connection, spec, shard=shard, schemes=("B", "A"), now=2.0)
        (row,) = queries.all_assignments(connection)
        assert row.schemes == ("A", "B")
        assert row.shard == shard
        wrong = make.shard("python", "gate").blob
        with pytest.raises(LedgerError, match="expected the spec's own"):
            queries.add_assignment(connection, spec, shard=wrong, schemes=(), now=2.0)


def test_a_run_or_a_shard_is_never_replaced(ledger, spec, make):
    with ledger.begin() as connection:
        queries.create_run(connection, run="r", coordinator="c", now=9.0)
        with pytest.raises(LedgerError, match="expected 'other'"):
            queries.create_run(connection, run="other", coordinator="c", now=9.0)
        queries.add_shard(connection, make.shard("python", "train"), now=2.0)
        changed = make.shard("python", "train").model_copy(update={"num_tokens": 5})
        with pytest.raises(LedgerError, match="holds another one"):
            queries.add_shard(connection, changed, now=2.0)


def test_the_last_two_durable_checkpoints_are_kept(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        freed = []
        for step in (2, 4, 6):
            beat(connection, held, now=11.0, step=step, checkpoint=make.blob(f"step {step}"))
            freed.append(hold(connection, make, spec, step=step, now=11.0))
        first = make.manifest(spec, ANNA, step=2)
        expected = {make.blob("step 2").digest, *(file.blob.digest for file in first.files)}
        assert freed[:2] == [(), ()]
        assert set(freed[2]) == expected
        resume = resumed(connection, held)
        assert resume == make.manifest(spec, ANNA, step=6)


def test_a_blob_that_a_kept_checkpoint_shares_is_not_freed(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        freed: tuple[str, ...] = ()
        shared = make.manifest(spec, ANNA, step=2).files[0]
        for step in (2, 4, 6):
            beat(connection, held, now=11.0, step=step, checkpoint=make.blob(f"step {step}"))
            (row,) = queries.announced_checkpoints(connection)
            manifest = make.manifest(spec, ANNA, step=step)
            manifest = manifest.model_copy(update={"files": (shared, *manifest.files[1:])})
            freed = queries.mark_durable(connection, row.checkpoint_id, manifest, 11.0)
        assert freed
        assert shared.blob.digest not in freed


def test_a_newer_announcement_replaces_one_that_nobody_collected(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        for step in (2, 4):
            beat(connection, held, now=11.0, step=step, checkpoint=make.blob(f"step {step}"))
        (row,) = queries.announced_checkpoints(connection)
        assert (row.step, row.manifest) == (4, make.blob("step 4"))


def test_a_transfer_that_ends_after_it_was_replaced_still_counts(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        beat(connection, held, now=11.0, step=2, checkpoint=make.blob("step 2"))
        (row,) = queries.announced_checkpoints(connection)
        beat(connection, held, now=12.0, step=4, checkpoint=make.blob("step 4"))
        manifest = make.manifest(spec, ANNA, step=2)
        queries.mark_durable(connection, row.checkpoint_id, manifest, 13.0)
        queries.mark_durable(connection, row.checkpoint_id, manifest, 14.0)
        assert resumed(connection, held) == manifest


@pytest.mark.parametrize(("field", "value"), [("step", 3), ("worker", BERT), ("spec", "0" * 64)])
def test_a_manifest_must_be_what_was_announced(ledger, spec, make, field, value):
    with ledger.begin() as connection:
        held = start(connection, spec)
        beat(connection, held, now=11.0, step=2, checkpoint=make.blob("step 2"))
        (row,) = queries.announced_checkpoints(connection)
        manifest = make.manifest(spec, ANNA, step=2).model_copy(update={field: value})
        with pytest.raises(LedgerError, match=f"manifest has {field}"):
            queries.mark_durable(connection, row.checkpoint_id, manifest, 12.0)


def test_a_refused_training_checkpoint_leaves_the_lease_alone(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        beat(connection, held, now=11.0, step=2, checkpoint=make.blob("step 2"))
        (row,) = queries.announced_checkpoints(connection)
        for _ in range(2):
            queries.mark_refused(connection, row.checkpoint_id, "bad header", 12.0)
        assert queries.announced_checkpoints(connection) == []
        (row_after,) = queries.all_assignments(connection)
        assert row_after.state == "running"


def test_a_submission_collected_after_its_lease_was_lost_is_a_spare(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        submission = Submission(
            request_id="0" * 32,
            fencing=held.fencing,
            manifest=make.blob("expert"),
            tokens_per_second=1.0,
            train_seconds=1.0,
        )
        queries.submit_expert(
            connection,
            held.assignment,
            submission,
            worker=ANNA,
            now=12.0,
            heartbeat_seconds=10.0,
        )
        (row,) = queries.announced_checkpoints(connection)
        queries.expire_leases(connection, 1000.0)
        offer(connection, spec, BERT, now=2000.0)
        manifest = make.manifest(spec, ANNA)
        freed = queries.mark_durable(connection, row.checkpoint_id, manifest, 2001.0)
        assert set(freed) == {make.blob("expert").digest, manifest.files[0].blob.digest}
        assert queries.durable_submissions(connection) == []


def test_nothing_is_verified_that_was_not_submitted(ledger, spec):
    with ledger.begin() as connection:
        held = start(connection, spec)
        with pytest.raises(LedgerError, match="its submission is not durable"):
            queries.record_verification(
                connection, held.assignment, held.fencing, Accepted(), "", 12.0
            )


def test_nobody_reads_what_no_rule_names(ledger, spec, make):
    with ledger.read() as connection:
        assert queries.may_read(connection, make.shard("python", "train").blob.digest, BERT)
        assert not queries.may_read(connection, make.shard("python", "gate").blob.digest, BERT)
        assert not queries.may_read(connection, "0" * 64, BERT)
        assert queries.may_upload(connection, "0" * 64) is None


def test_a_banned_worker_reads_nothing(ledger, spec, make):
    with ledger.begin() as connection:
        queries.mark_worker(connection, BERT, "ban", reason="", now=2.0)
        assert not queries.may_read(connection, make.shard("python", "train").blob.digest, BERT)


def test_an_unknown_domain_has_no_class(ledger, spec):
    with (
        pytest.raises(LedgerError, match=r"'none'.*no such row"),
        ledger.begin() as connection,
    ):
        queries.set_domain_class(connection, "none", "easy", 1.0, now=3.0)


def test_the_snapshot_is_what_the_queries_wrote(ledger, spec):
    with ledger.begin() as connection:
        for perplexity in (9.0, 8.0):
            queries.record_evaluation(
                connection,
                spec_digest=spec.digest,
                shard_digest="0" * 64,
                mean_log_likelihood=-2.0,
                perplexity=perplexity,
                bits_per_byte=1.0,
                now=3.0,
            )
        queries.set_domain_class(connection, "python", "difficult", 8.0, now=3.0)
        seen = queries.snapshot(connection)
    assert seen.phase == "preparing"
    assert [row.spec for row in seen.assignments] == [spec]
    assert [row.perplexity for row in seen.evaluations] == [8.0]
    assert seen.domains[0].difficulty == "difficult"
    assert set(seen.domains[0].shards) == {"train", "gate"}
    assert seen.results is None


def submit(connection, held: Assignment, manifest, *, now: float) -> Assignment:
    message = Submission(
        request_id="0" * 32,
        fencing=held.fencing,
        manifest=manifest,
        tokens_per_second=1.0,
        train_seconds=1.0,
    )
    after = queries.submit_expert(
        connection,
        held.assignment,
        message,
        worker=held.worker or "",
        now=now,
        heartbeat_seconds=10.0,
    )
    assert isinstance(after, Assignment)
    return after


def before_it_was_collected(connection, make, spec, held: Assignment) -> None:
    queries.expire_leases(connection, 1000.0)


def when_collected_too_late(connection, make, spec, held: Assignment) -> None:
    (row,) = queries.announced_checkpoints(connection)
    queries.expire_leases(connection, 1000.0)
    queries.mark_durable(connection, row.checkpoint_id, make.manifest(spec, ANNA), 1001.0)


def when_cancelled(connection, make, spec, held: Assignment) -> None:
    hold(connection, make, spec, step=None, now=13.0)
    settle(connection, held, "cancel")


def when_failed_uncollected(connection, make, spec, held: Assignment) -> None:
    settle(connection, held, "fail")


def when_failed_collected(connection, make, spec, held: Assignment) -> None:
    hold(connection, make, spec, step=None, now=13.0)
    settle(connection, held, "fail")


def when_rejected(connection, make, spec, held: Assignment) -> None:
    hold(connection, make, spec, step=None, now=13.0)
    queries.record_verification(
        connection, held.assignment, held.fencing, Rejected("worse"), "worse", 14.0
    )


def settle(connection, held: Assignment, verb) -> None:
    outcome = queries.settle_assignment(connection, held.assignment, verb, reason="", now=15.0)
    assert isinstance(outcome, queries.Settled)


@pytest.mark.parametrize(
    "end",
    [
        before_it_was_collected,
        when_collected_too_late,
        when_cancelled,
        when_failed_uncollected,
        when_failed_collected,
        when_rejected,
    ],
)
def test_equal_bits_under_a_new_lease_are_collected_and_verified_anew(ledger, spec, make, end):
    expert = make.blob("expert")
    with ledger.begin() as connection:
        held = start(connection, spec)
        submit(connection, held, expert, now=12.0)
        end(connection, make, spec, held)
        settle(connection, held, "retry")
        again = start(connection, spec, now=2000.0)
        assert again.fencing == 2
        submit(connection, again, expert, now=2001.0)
        hold(connection, make, spec, step=None, now=2002.0)
        (submission,) = queries.durable_submissions(connection)
        assert (submission.worker, submission.fencing) == (ANNA, 2)
        queries.record_verification(connection, again.assignment, 2, Accepted(), "", 2003.0)
        assert queries.accepted(connection)[spec.digest].worker == ANNA


def test_an_equal_training_checkpoint_under_a_new_lease_is_collected_anew(ledger, spec, make):
    with ledger.begin() as connection:
        held = start(connection, spec)
        beat(connection, held, now=11.0, step=2, checkpoint=make.blob("step 2"))
        hold(connection, make, spec, step=2, now=12.0)
        settle(connection, held, "cancel")
        settle(connection, held, "retry")
        again = start(connection, spec, now=20.0)
        assert resumed(connection, again) is None
        beat(connection, again, now=21.0, step=2, checkpoint=make.blob("step 2"))
        hold(connection, make, spec, step=2, now=22.0)
        assert resumed(connection, again) == make.manifest(spec, ANNA, step=2)


def give_back(connection, spec, reason, *, worker: str = ANNA, now: float) -> None:
    held = start(connection, spec, worker, now)
    release = Release(fencing=held.fencing, reason=reason, detail="nan", checkpoint=None)
    after = queries.release_lease(
        connection, held.assignment, release, worker=worker, max_attempts=2, now=now
    )
    assert isinstance(after, Assignment)


@pytest.mark.parametrize("purpose", ["dense trial", "probe"])
def test_what_is_only_measured_fails_when_it_diverged_in_all_attempts(ledger, make, spec, purpose):
    trial = make.spec(rng_seed=7)
    shard = make.shard("python", "train").blob
    with ledger.begin() as connection:
        queries.add_assignment(connection, trial, shard=shard, schemes=(purpose,), now=1.0)
        for number, state in enumerate(("open", "open", "failed")):
            assert queries.snapshot(connection).diverged == frozenset()
            reason = "diverged" if number else "stopped"
            give_back(connection, trial, reason, now=100.0 * (number + 1))
            row = queries.get_assignment(connection, f"a{trial.digest[:16]}")
            assert row.state == state
        assert row.reason == "failed: the training diverged in 2 attempts"
        assert queries.snapshot(connection).diverged == {trial.digest}
        queries.settle_assignment(connection, row.assignment, "retry", reason="again", now=400.0)
        assert queries.snapshot(connection).diverged == frozenset()


def test_what_schemes_need_does_not_fail_because_one_worker_says_that_it_diverged(ledger, spec):
    with ledger.begin() as connection:
        for number in range(4):
            give_back(connection, spec, "diverged", now=100.0 * (number + 1))
        row = queries.get_assignment(connection, f"a{spec.digest[:16]}")
        assert row.state == "open"
        assert queries.snapshot(connection).diverged == frozenset()
        give_back(connection, spec, "stopped", now=500.0)
        give_back(connection, spec, "trainer_failed", worker=BERT, now=600.0)
        expected = Failing(row.assignment, "diverged", num_attempts=4, num_workers=1)
        assert queries.snapshot(connection).failing == (expected,)
        for verb in ("fail", "retry"):
            queries.settle_assignment(connection, row.assignment, verb, reason="again", now=700.0)
            assert queries.snapshot(connection).failing == ()
