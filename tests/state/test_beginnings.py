"""Where an attempt's own training began, as its worker says: for its speed, and for its credit."""

import pytest
from story import ANNA, BERT, Story

from coordinator.ledger import queries, tables
from protocol.specs import ExpertSpec
from shared.sizing import step_flops
from shared.training.ends import spec_ending_at

STEPS = 8


@pytest.fixture
def story(ledger, make) -> Story:
    return Story(ledger, make)


def add_shorter(story: Story) -> tuple[ExpertSpec, str]:
    """The spec of the same curve that ends after STEPS, and its assignment."""
    spec = spec_ending_at(story.spec, STEPS)
    shard = story.make.shard("python", "train").blob
    name = story.write(
        lambda connection, now: queries.add_assignment(
            connection, spec, shard=shard, schemes=("A",), now=now
        )
    )
    return spec, name


def hand_in_shorter(story: Story, worker: str) -> None:
    whole = story.spec
    story.spec, name = add_shorter(story)
    story.hand_in(story.start(worker, name))
    story.spec = whole


def credited(story: Story) -> dict[str, int]:
    with story.ledger.read() as connection:
        rows = connection.execute(tables.receipts.select())
        return {row.worker: row.num_steps for row in rows if row.spec == story.spec.digest}


def test_a_shared_prefix_is_credited_once_and_makes_nobody_fast(story):
    total = story.spec.train.num_steps
    hand_in_shorter(story, ANNA)
    held = story.start(ANNA, story.original)
    story.beat(held, 0)
    began = story.now
    story.now += 20.0
    story.beat(held, STEPS + 10, first_step=STEPS)
    with story.ledger.read() as connection:
        speed = queries.observed_speeds(connection, [ANNA])[ANNA]
    seconds = story.now - (began - 1.0)
    assert speed == pytest.approx(step_flops(story.spec) * 10 / seconds)
    story.hand_in(held, first_step=STEPS + 3)
    assert credited(story) == {ANNA: total - STEPS}


def test_one_who_is_done_before_its_first_heartbeat_says_it_with_the_submission(story):
    hand_in_shorter(story, ANNA)
    story.hand_in(story.start(ANNA, story.original), first_step=STEPS)
    assert credited(story) == {ANNA: story.spec.train.num_steps - STEPS}


def test_an_own_checkpoint_that_was_never_announced_is_credited_in_full(story):
    hand_in_shorter(story, BERT)
    held = story.start(ANNA, story.original)
    story.beat(held, STEPS + 1, first_step=STEPS)
    with story.ledger.read() as connection:
        attempt = queries.find_attempt(connection, story.original, held.fencing)
    assert (attempt.resumed_step, attempt.resumed_from) == (STEPS, ANNA)
    story.hand_in(held)
    assert credited(story) == {ANNA: story.spec.train.num_steps}


def test_nobody_takes_steps_from_the_author_of_an_offered_checkpoint(story):
    first = story.start(ANNA, story.original)
    story.beat(first, 5, checkpoint=True)
    story.collect(ANNA, step=5)
    story.write(lambda connection, now: queries.expire_leases_of(connection, ANNA, now=now))
    story.now += 10.0
    held = story.start(BERT, story.original)
    story.beat(held, 7, first_step=6)
    story.hand_in(held, first_step=6)
    assert credited(story) == {ANNA: 5, BERT: story.spec.train.num_steps - 5}


@pytest.mark.parametrize("first_step", [None, 0, 10**6])
def test_what_says_nothing_new_or_nothing_possible_changes_nothing(story, first_step):
    held = story.start(ANNA, story.original)
    story.beat(held, 3, first_step=first_step)
    with story.ledger.read() as connection:
        attempt = queries.find_attempt(connection, story.original, held.fencing)
        kinds = [entry.kind for entry in queries.read_entries(connection)]
    assert (attempt.resumed_step, attempt.resumed_from) == (0, None)
    assert "begin" not in kinds
