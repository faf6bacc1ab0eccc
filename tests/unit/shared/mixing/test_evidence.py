"""Token counts: what they count, that they add up, and the tables they become."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mixing import evidence
from shared.mixing.evidence import (
    StatisticsError,
    TokenCounts,
    count_tokens,
    log_likelihood_table,
    pair_buckets,
)
from shared.shards import BOS_ID, Shard

VOCAB = 24

documents = st.lists(
    st.lists(st.integers(2, VOCAB - 1), max_size=30).map(lambda rest: [BOS_ID, *rest]),
    min_size=1,
    max_size=8,
)


def shard_of(lists: list[list[int]]) -> Shard:
    return Shard(
        tokens=np.concatenate([np.asarray(tokens, dtype=np.uint16) for tokens in lists]),
        document_offsets=np.cumsum([0, *map(len, lists)]),
        document_bytes=np.asarray([len(tokens) for tokens in lists]),
    )


def slow_counts(
    lists: list[list[int]], window: int, buckets: int
) -> tuple[int, list[int], list[int]]:
    windows: list[set[int]] = []
    pairs: list[set[int]] = []
    for document in lists:
        for start in range(1, len(document), window):
            inside = range(start, min(start + window, len(document)))
            windows.append({document[at] for at in inside})
            pairs.append({slow_bucket(document, at, buckets) for at in inside if at > 1})
    return (
        len(windows),
        [sum(token in one for one in windows) for token in range(VOCAB)],
        [sum(bucket in one for one in pairs) for bucket in range(buckets)],
    )


def slow_bucket(document: list[int], at: int, buckets: int) -> int:
    mixed = document[at - 1] * 1_000_003 + document[at] * 998_244_353
    return mixed % 2_147_483_647 % buckets


@given(
    lists=documents,
    window=st.integers(1, 40),
    buckets=st.integers(1, 60),
    chunk=st.sampled_from([1, 7, 1 << 20]),
)
def test_what_occurs_counts_once_in_every_window_that_holds_it(
    lists, window, buckets, chunk
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "_CHUNK_TOKENS", chunk)
        counted = count_tokens(shard_of(lists), vocab_size=VOCAB, num_pairs=buckets, window=window)
    assert (counted.windows, counted.counts.tolist(), counted.pairs.tolist()) == slow_counts(
        lists, window, buckets
    )
    assert counted.counts[BOS_ID] == 0
    assert count_tokens(shard_of(lists), vocab_size=VOCAB, window=window).num_pairs == 0


def test_buckets_of_the_largest_vocabularies_do_not_overflow() -> None:
    ids = np.asarray([0, 1, 2**18 - 1, 2**20 - 1])
    first, second = (grid.ravel() for grid in np.meshgrid(ids, ids))
    found = pair_buckets(first, second, 32_768).tolist()
    assert found == [
        (int(a) * 1_000_003 + int(b) * 998_244_353) % 2_147_483_647 % 32_768
        for a, b in zip(first, second, strict=True)
    ]


def test_pairs_are_spread_evenly_over_their_buckets() -> None:
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(2048), np.arange(2048)))
    filled = np.bincount(pair_buckets(first, second, 32_768), minlength=32_768)
    assert filled.min() > 64
    assert filled.max() < 192


@given(first=documents, second=documents)
def test_counts_of_two_texts_add_up_and_come_apart_again(first, second) -> None:
    one, other, both = (
        count_tokens(shard_of(lists), vocab_size=VOCAB, num_pairs=30, window=16)
        for lists in (first, second, first + second)
    )
    added = one + other
    assert added.windows == both.windows
    assert np.array_equal(added.counts, both.counts)
    assert np.array_equal(added.pairs, both.pairs)
    left = added - other
    assert left.windows == one.windows
    assert left.counts.tobytes() == one.counts.tobytes()
    assert left.pairs.tobytes() == one.pairs.tobytes()


@given(
    lists=st.lists(documents, min_size=1, max_size=4),
    buckets=st.integers(0, 30),
    smoothing=st.floats(1e-3, 100),
)
def test_every_column_of_a_table_is_a_distribution_of_tokens_and_one_of_pairs(
    lists, buckets, smoothing
) -> None:
    counts = [
        count_tokens(shard_of(one), vocab_size=VOCAB, num_pairs=buckets, window=16) for one in lists
    ]
    table = log_likelihood_table(counts, smoothing=smoothing)
    assert table.dtype == np.float32
    assert table.shape == (VOCAB + buckets, len(counts))
    shares = np.exp(table.astype(np.float64))
    assert np.allclose(shares[:VOCAB].sum(axis=0), 1.0, atol=1e-5)
    if buckets:
        assert np.allclose(shares[VOCAB:].sum(axis=0), 1.0, atol=1e-5)
    for column, one in zip(table.T, counts, strict=True):
        tokens = (one.counts + smoothing) / (one.counts.sum() + smoothing * VOCAB)
        pairs = (one.pairs + smoothing) / (one.pairs.sum() + smoothing * buckets)
        assert np.allclose(column, np.log(np.concatenate([tokens, pairs])), rtol=1e-6)


def test_a_column_does_not_depend_on_the_other_domains() -> None:
    counts = [
        count_tokens(shard_of([[BOS_ID, *tokens]]), vocab_size=VOCAB)
        for tokens in ([2, 3, 3], [4, 5, 6, 7], [8])
    ]
    whole = log_likelihood_table(counts, smoothing=1.0)
    without = log_likelihood_table([counts[0], counts[2]], smoothing=1.0)
    assert whole[:, [0, 2]].tobytes() == without.tobytes()


def test_a_domain_without_text_says_nothing() -> None:
    empty = TokenCounts(0, np.zeros(VOCAB, dtype=np.int64))
    assert np.allclose(log_likelihood_table([empty], smoothing=0.5), -np.log(VOCAB))


def test_what_was_not_added_cannot_be_taken_away() -> None:
    few = TokenCounts(2, np.asarray([1, 0]))
    with pytest.raises(StatisticsError, match="counts: -1 windows with number 1"):
        few - TokenCounts(0 + 1, np.asarray([0, 1]))
    with pytest.raises(StatisticsError, match="windows: -1"):
        few - TokenCounts(3, np.asarray([1, 0]))


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(
        StatisticsError, match="counts: 3 windows with number 0, expected from 0 to"
    ):
        TokenCounts(2, np.asarray([3, 0]))
    with pytest.raises(StatisticsError, match="counts: float64"):
        TokenCounts(2, np.asarray([np.nan, 0]))
    with pytest.raises(StatisticsError, match="counts: int64"):
        TokenCounts(2, np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(StatisticsError, match="pairs: 3 windows with number 1"):
        TokenCounts(2, np.asarray([1, 0]), np.asarray([1, 3]))
    with pytest.raises(StatisticsError, match="counts: of no token"):
        TokenCounts(0, np.zeros(0, dtype=np.int64))
    with pytest.raises(StatisticsError, match=r"counts: of \[2, 3\]"):
        TokenCounts(2, np.asarray([1, 0])) + TokenCounts(2, np.asarray([1, 0, 0]))
    with pytest.raises(StatisticsError, match=r"pairs: of \[0, 2\]"):
        TokenCounts(2, np.asarray([1, 0])) + TokenCounts(2, np.asarray([1, 0]), np.asarray([0, 0]))


def test_a_table_of_nothing_or_without_smoothing_is_refused() -> None:
    counts = TokenCounts(1, np.asarray([1, 0]))
    with pytest.raises(ValueError, match="counts: none"):
        log_likelihood_table([], smoothing=1.0)
    for smoothing in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="smoothing"):
            log_likelihood_table([counts], smoothing=smoothing)
    with pytest.raises(StatisticsError, match=r"counts: of \[2, 3\]"):
        log_likelihood_table([counts, TokenCounts(1, np.asarray([1, 0, 0]))], smoothing=1.0)


def test_a_token_outside_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(StatisticsError, match="tokens: id 9, expected less than vocab_size 9"):
        count_tokens(shard_of([[BOS_ID, 3, 9]]), vocab_size=9)
