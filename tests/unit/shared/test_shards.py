"""Shard files, training batches as a function of the step, and scoring windows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.specs import TrainSpec
from shared.shards import BOS_ID, Batches, Shard, ShardError, scoring_windows, write_shard
from shared.tensorfiles import TensorFileError, write_tensors

VOCAB = 256

documents = st.lists(
    st.lists(st.integers(2, VOCAB - 1), max_size=40).map(lambda rest: [BOS_ID, *rest]),
    min_size=1,
    max_size=12,
)


def shard_of(lists: list[list[int]]) -> Shard:
    lengths = [len(tokens) for tokens in lists]
    return Shard(
        tokens=np.concatenate([np.asarray(tokens, dtype=np.uint16) for tokens in lists]),
        document_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        document_bytes=np.asarray([3 * length for length in lengths], dtype=np.int64),
    )


def counted(num_tokens: int) -> Shard:
    """One document whose token ids tell their position."""
    tokens = np.arange(num_tokens, dtype=np.uint32)
    return Shard(
        tokens=tokens,
        document_offsets=np.asarray([0, num_tokens]),
        document_bytes=np.asarray([num_tokens]),
    )


def recipe(make, **changes: int) -> TrainSpec:
    return make.spec().train.model_copy(update=changes)


@given(lists=documents)
def test_a_written_shard_reads_back(lists, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.safetensors"
    write_shard(path, [(np.asarray(t), 2 * len(t)) for t in lists], vocab_size=VOCAB)
    first = path.read_bytes()
    shard = Shard.read(path, vocab_size=VOCAB)
    assert shard.num_documents == len(lists)
    assert shard.num_tokens == sum(map(len, lists))
    assert shard.num_bytes == 2 * shard.num_tokens
    assert shard.tokens.dtype == np.uint16
    read = [shard.tokens[a:b].tolist() for a, b in pairwise(shard.document_offsets)]
    assert read == lists
    write_shard(path, [(np.asarray(t), 2 * len(t)) for t in lists], vocab_size=VOCAB)
    assert path.read_bytes() == first


def test_a_vocabulary_from_elsewhere_has_its_own_bos(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", [(np.asarray([0, 7]), 5), (np.asarray([0, 1]), 5)], vocab_size=8)
    assert Shard.read(tmp_path / "s", vocab_size=8).bos_id == 0


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    write_shard(path, [(np.asarray([1, 99_999]), 5)], vocab_size=100_000)
    shard = Shard.read(path, vocab_size=100_000)
    assert shard.tokens.dtype == np.uint32
    assert shard.tokens[1] == 99_999


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("tokens", np.asarray([1, 2, VOCAB, 1, 3], "<u2"), "id 256"),
        ("tokens", np.asarray([1, 2, 3, 4, 3], "<u2"), "document 1 begins with 4"),
        ("tokens", np.asarray([1, 2, 3, 1, 3], "<i8"), "tokens is"),
        ("tokens", np.asarray([[1], [2], [3], [1], [3]], "<u2"), "one dimension"),
        ("document_offsets", np.asarray([0, 3, 6], "<i8"), "from 0 to 6"),
        ("document_offsets", np.asarray([1, 3, 5], "<i8"), "from 1"),
        ("document_offsets", np.asarray([0, 5, 5], "<i8"), "each above"),
        ("document_offsets", np.asarray([0, 9, 5], "<i8"), "each above"),
        ("document_offsets", np.asarray([0, 5], "<i8"), "one more than"),
        ("document_offsets", np.asarray([0, 3, 5], "<u4"), "document_offsets is"),
        ("document_bytes", np.asarray([4, -4], "<i8"), "negative"),
        ("document_bytes", np.asarray([], "<i8"), "0 documents"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, field: str, value, match: str) -> None:
    good = {
        "tokens": np.asarray([1, 2, 3, 1, 3], "<u2"),
        "document_offsets": np.asarray([0, 3, 5], "<i8"),
        "document_bytes": np.asarray([4, 4], "<i8"),
    }
    write_tensors(tmp_path / "good", good)
    assert Shard.read(tmp_path / "good", vocab_size=VOCAB).num_documents == 2
    write_tensors(tmp_path / "bad", {**good, field: value})
    with pytest.raises(ShardError, match=match):
        Shard.read(tmp_path / "bad", vocab_size=VOCAB)


def test_a_file_of_other_tensors_is_no_shard(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"tokens": np.asarray([1], "<u2")})
    with pytest.raises(ShardError, match="expected"):
        Shard.read(tmp_path / "t", vocab_size=VOCAB)
    (tmp_path / "t").write_bytes(b"hello")
    with pytest.raises(TensorFileError):
        Shard.read(tmp_path / "t", vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [([1, -1], "-1"), ([7, 3], "document 1 begins with 7"), ([1, 256], "id 256")],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, tokens, match: str) -> None:
    documents = [(np.asarray([1, 5]), 1), (np.asarray(tokens), 1)]
    with pytest.raises(ShardError, match=match):
        write_shard(tmp_path / "s", documents, vocab_size=VOCAB)
    assert not (tmp_path / "s").exists()


def test_a_shard_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="none"):
        write_shard(tmp_path / "s", [], vocab_size=VOCAB)


def test_a_batch_is_a_function_of_the_seed_and_the_step(make) -> None:
    train = recipe(make, sequence_length=8, micro_batch=2, accumulation=3)
    shard = counted(500)
    in_order = Batches(shard, train)
    steps = [in_order.step(step) for step in range(30)]
    again = Batches(shard, train)
    for step in (29, 3, 17, 3, 0):
        assert np.array_equal(again.step(step), steps[step])
    other = Batches(
        shard, recipe(make, sequence_length=8, micro_batch=2, accumulation=3, rng_seed=1)
    )
    assert not np.array_equal(other.step(0), steps[0])
    assert steps[0].shape == (3, 2, 9)
    assert steps[0].dtype == np.int64


@given(
    num_windows=st.integers(6, 40),
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 2),
    extra=st.integers(0, 7),
)
def test_every_window_is_read_once_an_epoch(
    make, num_windows: int, micro_batch: int, accumulation: int, extra: int
) -> None:
    train = recipe(make, sequence_length=8, micro_batch=micro_batch, accumulation=accumulation)
    batches = Batches(counted(num_windows * 8 + 1 + extra), train)
    size = micro_batch * accumulation
    steps = -(-2 * num_windows // size)
    rows = np.concatenate([batches.step(s).reshape(size, 9) for s in range(steps)])
    assert np.array_equal(np.diff(rows, axis=1), np.ones((len(rows), 8)))
    for epoch in (0, 1):
        firsts = rows[epoch * num_windows : (epoch + 1) * num_windows, 0]
        assert sorted(firsts.tolist()) == [8 * window for window in range(num_windows)]
    if num_windows > 20:
        assert not np.array_equal(rows[:num_windows], rows[num_windows : 2 * num_windows])


def test_the_data_order_is_the_one_that_was_always_used(make) -> None:
    train = recipe(make, sequence_length=8, micro_batch=4, accumulation=2, rng_seed=7)
    firsts = Batches(counted(1000), train).step(5)[:, :, 0] // 8
    assert firsts.tolist() == [[69, 8, 51, 15], [70, 76, 93, 16]]


def test_a_shard_too_short_for_a_batch_is_refused_with_the_numbers(make) -> None:
    train = recipe(make, sequence_length=8, micro_batch=4, accumulation=2)
    Batches(counted(65), train)
    with pytest.raises(ShardError, match="64, expected at least 65 for one batch of 8 sequences"):
        Batches(counted(64), train)


@given(lists=documents, length=st.integers(1, 50))
def test_every_token_but_bos_is_a_label_exactly_once(lists, length: int) -> None:
    shard = shard_of(lists)
    windows = scoring_windows(shard, length)
    seen: list[int] = []
    for start, size, document in zip(
        windows.starts, windows.lengths, windows.documents, strict=True
    ):
        assert 1 <= size <= length
        begin, end = shard.document_offsets[document : document + 2]
        assert begin <= start
        assert start + size < end
        seen.extend(range(start + 1, start + size + 1))
    bos = set(shard.document_offsets[:-1].tolist())
    assert seen == [index for index in range(shard.num_tokens) if index not in bos]
    assert windows.num_labels == shard.num_tokens - shard.num_documents
    assert len(windows.label_documents) == windows.num_labels
    assert windows.label_starts.tolist() == [
        sum(windows.lengths[:index].tolist()) for index in range(len(windows.lengths))
    ]


def test_a_window_needs_a_label() -> None:
    with pytest.raises(ValueError, match="length 0"):
        scoring_windows(shard_of([[1, 2]]), 0)
