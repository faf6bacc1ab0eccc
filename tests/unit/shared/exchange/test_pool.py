"""Which pieces are handed out, and what becomes of those that come back."""

from hypothesis import given
from hypothesis import strategies as st

from shared.exchange.pool import MAX_RANGE_PIECES, Pool

MISSING = st.sets(st.integers(0, 60), min_size=1)


@given(missing=MISSING, num_lanes=st.integers(1, 6))
def test_every_piece_is_handed_out_once_in_ranges_of_missing_pieces(missing, num_lanes) -> None:
    pool, taken = Pool(missing), []
    while run := pool.take(num_lanes):
        assert len(run) <= MAX_RANGE_PIECES
        taken += run
    assert sorted(taken) == sorted(missing)
    assert not pool.is_done
    for index in taken:
        pool.done(index)
    assert pool.is_done


@given(missing=MISSING, num_done=st.integers(0, 20))
def test_what_is_given_back_waits_again_and_what_is_done_does_not(missing, num_done) -> None:
    pool = Pool(missing)
    run = pool.take(1)
    for index in run[:num_done]:
        pool.done(index)
    pool.give_back(run)
    left = []
    while again := pool.take(2):
        left += again
    assert sorted(left) == sorted(missing - set(run[:num_done]))


@given(missing=MISSING, data=st.data())
def test_a_piece_that_was_begun_is_the_next_and_keeps_its_first_bytes(missing, data) -> None:
    begun = data.draw(st.sampled_from(sorted(missing)))
    pool = Pool(missing)
    pool.keep_head(begun, bytearray(b"first"))
    assert pool.take(3).start == begun
    assert pool.pop_head(begun) == b"first"
    assert pool.pop_head(begun) == b""


def test_shares_become_smaller_towards_the_end() -> None:
    pool, sizes = Pool(range(64)), []
    while run := pool.take(4):
        sizes.append(len(run))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert sizes[-1] == 1
