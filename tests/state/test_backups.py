"""Two at one spec: the first that is accepted is canonical, and each is credited with its steps."""

import pytest
from sqlalchemy.exc import IntegrityError
from story import ANNA, BERT, Story

from coordinator.api.receipts import sign_receipt
from coordinator.ledger import LedgerError, queries
from coordinator.lifecycle import Refused
from coordinator.scoring.verification import Accepted, Rejected
from protocol.messages import Release
from shared.identity import Identity, receipt_valid
from shared.sizing import step_flops, train_flops


@pytest.fixture
def story(ledger, make) -> Story:
    return Story(ledger, make)


def test_an_accepted_backup_cancels_the_original_and_frees_its_worker(story):
    slow = story.start(ANNA, story.original)
    backup = story.back_up()
    assert not story.free(ANNA)
    story.hand_in(story.start(BERT, backup))
    assert story.row(backup).state == "accepted"
    assert story.row(story.original).state == "cancelled"
    assert story.free(ANNA)
    assert isinstance(story.beat(slow, 5), Refused)
    assert isinstance(story.submit(slow), Refused)
    with story.ledger.read() as connection:
        assert queries.accepted(connection)[story.spec.digest].worker == BERT
        assert queries.count_by_state(connection) == {"accepted": 1}
        assert [row.state for row in queries.snapshot(connection).assignments] == ["accepted"]
        (expert,) = queries.expert_views(connection)
        assert expert.worker == BERT


def test_an_accepted_original_cancels_its_backup(story):
    slow = story.start(ANNA, story.original)
    backup = story.back_up()
    quick = story.start(BERT, backup)
    story.hand_in(slow)
    assert story.row(backup).state == "cancelled"
    assert story.free(BERT)
    assert isinstance(story.beat(quick, 5), Refused)


def test_a_backup_that_goes_on_from_the_originals_checkpoint_shares_the_credit(story):
    slow = story.start(ANNA, story.original)
    story.beat(slow, 8, checkpoint=True)
    story.collect(ANNA, step=8)
    backup = story.back_up()
    with story.ledger.read() as connection:
        resume = queries.resume_of(connection, backup, story.original)
    assert resume is not None
    assert (resume.assignment, resume.manifest.step) == (story.original, 8)
    story.hand_in(story.start(BERT, backup))
    (anna,), (bert,) = story.earned().values()
    assert (anna.num_steps, bert.num_steps) == (8, 12)
    assert anna.entry == bert.entry
    assert anna.credit == step_flops(story.spec) * 8
    assert anna.credit + bert.credit == pytest.approx(train_flops(story.spec))
    with story.ledger.read() as connection:
        assert queries.earned_by(connection, [ANNA, BERT]) == {
            ANNA: (1, anna.credit),
            BERT: (1, bert.credit),
        }
        assert queries.proven_workers(connection) == {ANNA, BERT}


def test_there_is_one_backup_of_an_assignment_at_a_time(story):
    story.start(ANNA, story.original)
    backup = story.back_up()
    with pytest.raises(IntegrityError):
        story.back_up()
    story.write(
        lambda connection, now: queries.cancel_assignment(
            connection, queries.get_assignment(connection, backup), reason="", now=now
        )
    )
    assert story.back_up() != backup


def test_a_backup_that_its_worker_gives_back_is_offered_to_nobody_else(story):
    story.start(ANNA, story.original)
    backup = story.back_up()
    held = story.start(BERT, backup)
    release = Release(
        fencing=held.fencing, reason="stopped", detail="", checkpoint=None, checkpoint_step=0
    )
    story.write(
        lambda connection, now: queries.release_lease(
            connection, backup, release, worker=BERT, max_attempts=3, now=now
        )
    )
    story.write(lambda connection, now: queries.cancel_idle_backups(connection, now=now))
    assert story.row(backup).state == "cancelled"
    assert story.row(story.original).state == "running"


def test_a_rejected_backup_leaves_the_original_alone(story):
    story.start(ANNA, story.original)
    backup = story.back_up()
    story.hand_in(story.start(BERT, backup), Rejected("worse"))
    story.write(lambda connection, now: queries.cancel_idle_backups(connection, now=now))
    assert story.row(story.original).state == "running"
    assert story.earned() == {ANNA: [], BERT: []}


def test_when_both_were_submitted_only_one_is_accepted(story):
    slow = story.start(ANNA, story.original)
    backup = story.back_up()
    quick = story.start(BERT, backup)
    story.submit(slow)
    story.collect(ANNA)
    story.hand_in(quick)
    with pytest.raises(LedgerError):
        story.write(
            lambda connection, now: queries.record_verification(
                connection, slow.assignment, slow.fencing, Accepted(), "", now
            )
        )
    with story.ledger.read() as connection:
        assert queries.durable_submissions(connection) == []
        assert queries.accepted_of(connection, story.spec.digest).worker == BERT


def test_a_receipt_is_signed_alike_every_time_and_names_its_entry(story, tmp_path):
    story.hand_in(story.start(ANNA, story.original))
    identity = Identity.create(tmp_path / "coordinator.key")
    (row,) = story.earned()[ANNA]
    first, second = (sign_receipt(identity, row, run="r") for _ in range(2))
    assert first == second
    known = {"coordinator": identity.peer_id, "run": "r", "worker": ANNA}
    assert receipt_valid(first, **known)
    assert not receipt_valid(first, **known | {"worker": BERT})
    forged = first.receipt.model_copy(update={"credit": first.receipt.credit * 2})
    assert not receipt_valid(first.model_copy(update={"receipt": forged}), **known)
    with story.ledger.read() as connection:
        (entry,) = queries.read_entries(connection, after=row.entry - 1, limit=1)
        assert (entry.kind, entry.digest) == ("accept", row.entry_digest)
        assert queries.receipts_of(connection, ANNA, after=row.entry) == []
