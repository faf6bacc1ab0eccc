"""Text that changes its subject: two domains' documents behind one BOS, in one window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.mixing.texts import (
    SPLICED_DOCUMENTS,
    Text,
    splice,
    spliced_pairs,
    spliced_text,
)
from shared.shards import BOS_ID, Shard, scoring_windows


def text(name: str, lengths: list[int], *, first: int) -> Text:
    documents = [[BOS_ID, *range(first, first + length)] for length in lengths]
    sizes = [len(document) for document in documents]
    shard = Shard(
        tokens=np.asarray([token for one in documents for token in one], dtype="<u2"),
        document_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype("<i8"),
        document_bytes=np.asarray(lengths, dtype="<i8"),
    )
    return Text(name=name, role="trained", digest=name * 8, shard=shard)


def test_each_domain_begins_one_pair_and_ends_one():
    assert spliced_pairs(["sea", "art", "law"]) == (("art", "law"), ("law", "sea"), ("sea", "art"))
    assert spliced_pairs(["art", "law"]) == (("art", "law"), ("law", "art"))
    assert spliced_pairs(["art"]) == ()


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.integers(2, 33),
)
def test_spliced_documents_fit_one_window_and_hold_both_domains(left, right, context):
    left, right = [*left, 3], [*right, 3]
    made = spliced_text(
        text("a", left, first=100), text("b", right, first=200), context_length=context
    )
    windows = scoring_windows(made.shard, context)
    assert (made.name, made.role) == ("a > b", "spliced")
    assert windows.documents.tolist() == list(range(made.shard.num_documents))
    said = [length for length in left if length], [length for length in right if length]
    assert made.shard.num_documents == min(SPLICED_DOCUMENTS, *map(len, said))
    half = context // 2
    for begin, end, one, other in zip(
        made.shard.document_offsets, made.shard.document_offsets[1:], *said, strict=False
    ):
        tokens = made.shard.tokens[begin:end].tolist()
        expected = [*range(100, 100 + min(half, one)), *range(200, 200 + min(half, other))]
        assert tokens == [BOS_ID, *expected]


def test_other_texts_have_other_digests():
    a, b = text("a", [9], first=100), text("b", [9], first=200)
    found = {
        spliced_text(one, other, context_length=context).digest
        for one, other, context in ((a, b, 8), (b, a, 8), (a, b, 16))
    }
    assert len(found) == 3


def test_a_splice_keeps_one_bos():
    left, right = np.asarray([1, 5, 6, 7], "<u2"), np.asarray([1, 8, 9], "<u2")
    assert splice(left, right, half=2).tolist() == [1, 5, 6, 8, 9]
    assert splice(left, right, half=9).tolist() == [1, 5, 6, 7, 8, 9]


def test_labels_are_all_tokens_but_bos():
    assert text("a", [9, 4], first=100).num_labels == 13
    with pytest.raises(AttributeError):
        text("a", [9], first=100).name = "b"
