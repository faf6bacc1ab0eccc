"""Evicting frees enough, takes nothing that is pinned, and hardly more than it must."""

from hypothesis import given
from hypothesis import strategies as st

from shared.blobs.eviction import Candidate, choose

names = st.integers(min_value=0, max_value=30).map(str)
stores = st.lists(
    st.builds(Candidate, names, st.integers(min_value=0, max_value=1000)),
    max_size=20,
    unique_by=lambda candidate: candidate.digest,
)


@given(stores, st.integers(min_value=-100, max_value=10_000), st.sets(names))
def test_enough_goes_in_order_and_never_a_blob_more(candidates, excess, pinned):
    free = [one for one in candidates if one.digest not in pinned and one.num_bytes > 0]
    chosen = choose(candidates, excess_bytes=excess, pinned=pinned)
    if chosen is None:
        assert sum(one.num_bytes for one in free) < excess
        return
    gone = free[: len(chosen)]
    assert chosen == tuple(one.digest for one in gone)
    assert not pinned & set(chosen)
    assert sum(one.num_bytes for one in gone) >= excess
    assert not gone or sum(one.num_bytes for one in gone[:-1]) < excess


def test_nothing_goes_where_all_of_it_would_not_be_enough():
    assert choose([Candidate("a", 10)], excess_bytes=11, pinned=()) is None
    assert choose([], excess_bytes=0, pinned=()) == ()
