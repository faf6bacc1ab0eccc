"""Blends: shares of tokens, whole documents, the same bytes for the same shards."""

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.text.blending import Blend, make_blend
from coordinator.text.prepared import Prepared
from protocol.blobs import BlobRef, ShardManifest
from shared.blobs import BlobStore
from shared.shards import BOS_ID, Shard, join_shards, write_shard

VOCAB, LONGEST = 64, 30


def add_shard(store, path, name, num_documents, number) -> ShardManifest:
    """Documents whose tokens tell the number of their text."""
    draw = random.Random(number)
    documents = [
        (np.array([BOS_ID, *[10 + number] * draw.randrange(1, LONGEST)]), 50)
        for _ in range(num_documents)
    ]
    write_shard(path, documents, vocab_size=VOCAB)
    return ShardManifest(
        domain=name,
        split="train",
        blob=store.add_file(path),
        num_documents=num_documents,
        num_tokens=sum(len(tokens) for tokens, _ in documents),
        num_bytes=50 * num_documents,
        vocab_size=VOCAB,
    )


def texts_of(folder, sizes):
    store = BlobStore(Path(folder) / "blobs")
    shards = tuple(
        add_shard(store, Path(folder) / f"{name}.safetensors", name, size, number)
        for number, (name, size) in enumerate(sizes.items())
    )
    tokenizer = BlobRef(digest="f" * 64, size=9)
    return Prepared(tokenizer=tokenizer, vocab_size=VOCAB, shards=shards), store


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(20, 120), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    num_tokens=st.integers(0, 20_000),
)
def test_each_text_has_its_share_of_tokens_in_whole_documents(sizes, weights, num_tokens):
    names = [f"d{number}" for number in range(len(sizes))]
    total = sum(weights[: len(names)])
    shares = {name: weight / total for name, weight in zip(names, weights, strict=False)}
    with tempfile.TemporaryDirectory() as folder:
        prepared, store = texts_of(folder, dict(zip(names, sizes, strict=True)))
        manifest = make_blend(Blend("mixed", shares, num_tokens), prepared, store)
        blend = Shard.read(store.path(manifest.blob.digest), vocab_size=VOCAB)
        documents = np.split(np.asarray(blend.tokens), blend.document_offsets[1:-1])
    assert (blend.num_tokens, blend.num_documents) == (manifest.num_tokens, manifest.num_documents)
    assert blend.num_bytes == manifest.num_bytes == 50 * blend.num_documents
    for number, name in enumerate(names):
        taken = sum(len(one) for one in documents if one[1] == 10 + number)
        # The document that reaches the share is whole.
        assert abs(taken - manifest.num_tokens * shares[name]) <= LONGEST * len(names)


def test_the_same_shards_give_the_same_bytes(tmp_path):
    blend = Blend("mixed", {"b": 0.5, "a": 0.5}, 0)
    places = [texts_of(tmp_path / name, {"a": 40, "b": 90}) for name in ("first", "second")]
    assert len({make_blend(blend, *place).blob.digest for place in places}) == 1


def test_texts_that_are_read_once_at_most_are_not_repeated(tmp_path):
    prepared, store = texts_of(tmp_path, {"a": 20, "b": 200})
    manifest = make_blend(Blend("mixed", {"a": 0.5, "b": 0.5}, 9), prepared, store)
    scarce = prepared.shard("a", "train").num_tokens
    assert 2 * scarce - 1 <= manifest.num_tokens <= 2 * scarce + LONGEST


def test_a_scarce_text_begins_again_where_a_training_reads_on(tmp_path):
    prepared, store = texts_of(tmp_path, {"a": 20, "b": 200})
    scarce, plenty = (prepared.shard(name, "train") for name in "ab")
    manifest = make_blend(
        Blend("mixed", {"a": 0.5, "b": 0.5}, 5 * scarce.num_tokens), prepared, store
    )
    blend = Shard.read(store.path(manifest.blob.digest), vocab_size=VOCAB)
    assert 5 * scarce.num_tokens <= manifest.num_tokens <= 5 * scarce.num_tokens + 2 * LONGEST
    first = Shard.read(store.path(scarce.blob.digest), vocab_size=VOCAB).tokens
    assert np.array_equal(blend.tokens[: 2 * len(first)], np.tile(first, 2))
    whole = make_blend(Blend("mixed", {"a": 0.5, "b": 0.5}, 10**9), prepared, store)
    assert whole.num_tokens <= 2 * plenty.num_tokens + LONGEST, "no text is repeated for nothing"


def test_joined_shards_are_what_was_written_at_once(tmp_path):
    documents = [(np.array([BOS_ID, *range(2, 2 + size)]), 10 * size) for size in (3, 1, 5, 2)]
    for name, some in (("all", documents[:2] + documents), ("one", documents)):
        write_shard(tmp_path / name, some, vocab_size=VOCAB)
    one = Shard.read(tmp_path / "one", vocab_size=VOCAB)
    join_shards(tmp_path / "joined", [(one, 2), (one, 4)])
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "all").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "joined", "one"]
