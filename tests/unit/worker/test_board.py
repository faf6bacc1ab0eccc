"""The board: one value that says what a worker does, true at every moment."""

import pytest

from protocol.messages import Offer
from worker.manners.rules import Verdict
from worker.status import MAX_LOSSES, MAX_SAID, Board, WorkerStatus

NO = Verdict(may_train=False, reason="paused by its owner", until=99.0)
YES = Verdict(may_train=True)


class Silent:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text):
        self.lines.append(text)

    def progress(self, event, *, durable_step):
        self.lines.append(f"{event['step']} {durable_step}")


@pytest.fixture
def screen():
    return Silent()


@pytest.fixture
def board(screen, clock):
    return Board(screen, WorkerStatus(), clock=clock)


def progress(step: int, loss: float | None = 2.0) -> dict[str, object]:
    return {
        "event": "progress",
        "step": step,
        "num_steps": 100,
        "loss": loss,
        "tokens_per_second": 10.0,
        "eta_seconds": 5.0,
    }


def offer_of(make, **changes: object) -> Offer:
    spec = make.spec()
    values = {
        "assignment": "a" + "0" * 16,
        "fencing": 1,
        "expires_in": 20.0,
        "spec": spec,
        "shard": make.blob("shard"),
        "parent": None,
        "resume": None,
        "checkpoint_seconds": 5.0,
        "reason": "you are the fastest",
        **changes,
    }
    return Offer(**values)


def test_a_state_has_a_reason_and_a_beginning_of_its_own(board, clock):
    board.update(state="waiting", reason="no work")
    since = clock()
    clock.advance(5)
    board.update(state="waiting", reason="none yet")
    assert (board.status.reason, board.status.since) == ("none yet", since)
    board.update(state="handing_in")
    assert (board.status.reason, board.status.since) == ("", clock())


def test_while_training_may_not_run_the_pause_is_shown_and_then_what_was_before(board, clock):
    board.update(state="training", reason="you are the fastest")
    clock.advance(5)
    board.obey(NO)
    assert board.status.state == "paused"
    assert (board.status.reason, board.status.pause_until) == ("paused by its owner", 99.0)
    assert board.status.since == clock()
    board.obey(YES)
    assert (board.status.state, board.status.reason) == ("training", "you are the fastest")
    assert board.status.pause_until is None


def test_what_goes_on_in_spite_of_a_pause_is_shown_as_it_is(board):
    board.obey(NO)
    for state in ("joining", "handing_in", "leaving"):
        board.update(state=state)
        assert (board.status.state, board.status.pause_until) == (state, None)


def test_progress_is_training_and_the_newest_losses_are_kept(board, screen, make):
    board.take(offer_of(make), reason="you are the fastest")
    assert board.status.state == "fetching"
    for step in range(1, 2 * MAX_LOSSES):
        board.progress(progress(step, loss=float(step)), durable_step=None)
    status = board.status
    assert (status.state, status.reason) == ("training", "you are the fastest")
    assert (status.step, status.num_steps) == (2 * MAX_LOSSES - 1, 100)
    assert status.losses == tuple(float(step) for step in range(MAX_LOSSES, 2 * MAX_LOSSES))
    assert screen.lines[-1] == f"{2 * MAX_LOSSES - 1} None"


def test_progress_of_a_worker_that_was_told_to_stop_does_not_hide_that_it_leaves(board):
    board.update(state="leaving", reason="asked to stop")
    board.progress(progress(3), durable_step=None)
    assert (board.status.state, board.status.step) == ("leaving", 3)


def test_a_checkpoint_is_durable_from_the_moment_that_we_hear_of_it(board, clock, make):
    board.take(offer_of(make), reason="")
    assert (board.status.durable_step, board.status.durable_at) == (None, None)
    board.progress(progress(3), durable_step=2)
    heard = clock()
    clock.advance(5)
    board.progress(progress(9), durable_step=2)
    assert (board.status.durable_step, board.status.durable_at) == (2, heard)


def test_new_work_begins_with_nothing_of_the_old(board, make):
    board.take(offer_of(make), reason="")
    board.progress(progress(50), durable_step=40)
    board.update(local_step=45, local_at=1.0, lease_until=9.0)
    board.put_down()
    assert (board.status.assignment, board.status.lease_until) == (None, None)
    spec = make.spec(domain="poems")
    resume = make.manifest(spec, "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", step=7)
    board.take(offer_of(make, spec=spec, resume=resume), reason="")
    status = board.status
    assert status.work == "seed for poems, FFN 64"
    assert (status.step, status.num_steps, status.durable_step) == (7, 20, 7)
    assert (status.losses, status.local_step, status.durable_at) == ((), None, None)


def test_only_the_last_words_are_kept_and_the_screen_hears_all(board, screen, clock):
    for number in range(MAX_SAID + 1):
        board.say(str(number))
    assert len(board.said) == MAX_SAID
    assert board.said[-1] == (clock(), str(MAX_SAID))
    assert len(screen.lines) == MAX_SAID + 1


def test_a_screen_that_is_a_board_stays_the_one_board(board, screen):
    assert Board.around(board) is board
    assert Board.around(screen) is not Board.around(screen)
