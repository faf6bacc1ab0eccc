"""Two at one spec: the first that is accepted is canonical, and each is credited with its steps."""

import pytest
from sqlalchemy.exc import IntegrityError

from coordinator.api.receipts import sign_receipt
from coordinator.ledger import LedgerError, queries
from coordinator.ledger.workers import Registration
from coordinator.lifecycle import Assignment, Holder, Refused
from coordinator.scoring.verification import Accepted, Rejected
from protocol.messages import AssignmentHeartbeat, Release, Submission
from shared.identity import Identity, receipt_valid
from shared.sizing import step_flops, train_flops

ANNA, BERT = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
HEARTBEAT = 10.0


class Story:
    """What happens to one spec, told in the third person; the clock goes on with every call."""

    def __init__(self, ledger, make) -> None:
        self.ledger, self.make, self.now = ledger, make, 100.0
        self.spec = make.spec()
        with ledger.begin() as connection:
            queries.create_run(connection, run="r", coordinator="c", now=1.0)
            for worker in (ANNA, BERT):
                registration = Registration(
                    worker=worker,
                    name="",
                    software_version="0",
                    capability=make.capability(),
                    maddrs=(),
                    token_digest=worker,
                    token_expires_at=1e9,
                    certificate_expires_at=1e9,
                )
                queries.register_worker(connection, registration, 1.0)
            shard = make.shard("python", "train")
            queries.add_shard(connection, shard, now=1.0)
            self.original = queries.add_assignment(
                connection, self.spec, shard=shard.blob, schemes=("A",), now=1.0
            )

    def write(self, work):
        self.now += 1.0
        with self.ledger.begin() as connection:
            return work(connection, self.now)

    def row(self, assignment: str):
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment)

    def start(self, worker: str, assignment: str) -> Assignment:
        def work(connection, now):
            terms = queries.OfferTerms(
                assignment=assignment, worker=worker, free_memory_bytes=1, reason=""
            )
            offered = queries.offer_assignment(
                connection, terms, now=now, heartbeat_seconds=HEARTBEAT
            )
            assert isinstance(offered, queries.Offered)
            holder = Holder(worker=worker, fencing=offered.standing.fencing)
            return queries.acknowledge_lease(
                connection, assignment, holder, now=now, heartbeat_seconds=HEARTBEAT
            )

        held = self.write(work)
        assert isinstance(held, Assignment)
        return held

    def back_up(self) -> str:
        row = self.row(self.original)
        return self.write(lambda connection, now: queries.add_backup(connection, row, now=now))

    def beat(self, held: Assignment, step: int, *, checkpoint: bool = False):
        beat = AssignmentHeartbeat(
            fencing=held.fencing,
            step=step,
            loss=None,
            tokens_per_second=1.0,
            checkpoint=self.make.blob(f"{held.worker} {step}") if checkpoint else None,
            checkpoint_step=step if checkpoint else 0,
        )
        return self.write(
            lambda connection, now: queries.renew_lease(
                connection,
                held.assignment,
                beat,
                worker=held.worker or "",
                flops_per_second=1e9,
                now=now,
                heartbeat_seconds=HEARTBEAT,
            )
        )

    def collect(self, worker: str, step: int | None = None) -> None:
        def work(connection, now):
            for row in queries.announced_checkpoints(connection):
                manifest = self.make.manifest(self.spec, worker, step=step)
                queries.mark_durable(connection, row.checkpoint_id, manifest, now)

        self.write(work)

    def submit(self, held: Assignment):
        submission = Submission(
            request_id="0" * 32,
            fencing=held.fencing,
            manifest=self.make.blob(f"{held.worker} expert"),
            tokens_per_second=1.0,
            train_seconds=1.0,
        )
        return self.write(
            lambda connection, now: queries.submit_expert(
                connection,
                held.assignment,
                submission,
                worker=held.worker or "",
                now=now,
                heartbeat_seconds=HEARTBEAT,
            )
        )

    def hand_in(self, held: Assignment, decision=None) -> None:
        assert isinstance(self.submit(held), Assignment)
        self.collect(held.worker or "")
        self.write(
            lambda connection, now: queries.record_verification(
                connection, held.assignment, held.fencing, decision or Accepted(), "", now
            )
        )

    def earned(self) -> dict[str, list[queries.ReceiptRow]]:
        with self.ledger.read() as connection:
            return {worker: queries.receipts_of(connection, worker) for worker in (ANNA, BERT)}

    def free(self, worker: str) -> bool:
        with self.ledger.read() as connection:
            return queries.live_lease_of(connection, worker) is None


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
