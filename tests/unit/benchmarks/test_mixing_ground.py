"""Beginnings of texts: what is measured on a whole shard holds for its first documents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.mixing.ground import _cut, begun, together
from coordinator.mixing.texts import Text
from shared.shards import BOS_ID, Shard, scoring_windows

CONTEXT = 8


def text_of(lengths, *, role="trained"):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    tokens = np.full(int(offsets[-1]), BOS_ID + 1, dtype="<u2")
    tokens[offsets[:-1]] = BOS_ID
    shard = Shard(tokens, offsets, np.asarray(lengths, dtype="<i8"))
    return Text(name="law", role=role, digest="0" * 64, shard=shard)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(1, 200))
def test_scores_of_a_beginning_are_the_beginning_of_the_scores(lengths, most):
    text = text_of(lengths)
    start = begun(text, most)
    scores = text.scores({"model": np.arange(text.num_labels, dtype=np.float32)}, CONTEXT)
    cut = _cut(scores, start)
    windows = scoring_windows(start.shard, CONTEXT)
    assert cut.by_model["model"].tolist() == list(range(windows.num_labels))
    assert cut.starts.tolist() == windows.label_starts.tolist()
    assert cut.documents.tolist() == windows.documents.tolist()
    # Whole documents, and no more of them than it takes.
    assert start.shard.num_tokens >= min(most, text.shard.num_tokens)
    assert start.shard.num_documents == 1 or start.shard.document_offsets[-2] < most
    assert (start.digest == text.digest) == (start.shard.num_tokens == text.shard.num_tokens)


def test_spliced_texts_stay_whole():
    text = text_of([20, 20], role="spliced")
    assert begun(text, 3) is text


def test_of_columns_with_one_name_the_last_counts():
    first = {"law": {"seed": np.zeros(1), "mixture": np.ones(1)}}
    last = {"law": {"seed": np.full(1, 2.0)}}
    found = together([first, last])["law"]
    assert {name: float(rows[0]) for name, rows in found.items()} == {"seed": 2.0, "mixture": 1.0}
