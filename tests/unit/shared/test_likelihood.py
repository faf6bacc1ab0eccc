"""Label log-likelihoods, however windows are batched."""

import numpy as np
import pytest
import torch

from protocol.specs import ModelShape
from shared import model as models
from shared.ensemble import perplexity
from shared.likelihood import label_log_likelihoods, unigram_log_likelihoods
from shared.shards import BOS_ID, Shard, scoring_windows

torch.set_num_threads(1)

SHAPE = ModelShape(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_width=24,
    context_length=16,
)


def shard_of(lengths: list[int], *, rng_seed: int = 0) -> Shard:
    tokens = np.random.default_rng(rng_seed).integers(2, 40, sum(lengths)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens[offsets[:-1]] = BOS_ID
    return Shard(tokens, offsets, np.asarray(lengths, dtype=np.int64) * 3)


@pytest.fixture(scope="module")
def model():
    built = models.build(SHAPE, rng_seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return built


SHARD = shard_of([40, 3, 17, 2, 1, 25])


def test_the_batch_size_changes_nothing(model) -> None:
    one = label_log_likelihoods(model, SHARD, length=16, batch=1)
    for batch in (2, 5, 100):
        many = label_log_likelihoods(model, SHARD, length=16, batch=batch)
        assert np.abs(one - many).max() < 1e-5


def test_likelihoods_are_those_of_each_window_alone(model) -> None:
    windows = scoring_windows(SHARD, 16)
    result = label_log_likelihoods(model, SHARD, length=16, batch=4)
    assert result.dtype == np.float32
    assert result.shape == (windows.num_labels,)
    assert result.std() > 0.1
    for start, length, first in zip(
        windows.starts, windows.lengths, windows.label_starts, strict=True
    ):
        tokens = torch.from_numpy(SHARD.tokens[start : start + length + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=tokens[None, :-1]).logits[0]
        expected = torch.log_softmax(logits, dim=1)[torch.arange(length), tokens[1:]]
        assert np.abs(result[first : first + length] - expected.numpy()).max() < 1e-5


def test_progress_counts_windows_to_the_end(model) -> None:
    seen: list[tuple[int, int]] = []
    label_log_likelihoods(
        model, SHARD, length=16, batch=3, progress=lambda done, total: seen.append((done, total))
    )
    total = len(scoring_windows(SHARD, 16).starts)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_shard_of_empty_documents_has_no_labels(model) -> None:
    assert label_log_likelihoods(model, shard_of([1, 1]), length=16, batch=2).shape == (0,)


@pytest.mark.parametrize(
    ("length", "batch", "match"), [(17, 1, "length 17"), (0, 1, "length 0"), (16, 0, "batch 0")]
)
def test_sizes_that_cannot_be_are_refused(model, length: int, batch: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        label_log_likelihoods(model, SHARD, length=length, batch=batch)


def test_unigram_likelihoods_are_smoothed_frequencies_in_label_order() -> None:
    train = shard_of([50, 60], rng_seed=1)
    result = unigram_log_likelihoods(train, SHARD, vocab_size=64)
    is_bos = np.zeros(SHARD.num_tokens, dtype=bool)
    is_bos[SHARD.document_offsets[:-1]] = True
    labels = SHARD.tokens[~is_bos]
    counts = np.bincount(train.tokens[train.tokens != BOS_ID], minlength=64)
    expected = np.log((counts[labels] + 1) / (108 + 64))
    assert np.allclose(result, expected)
    assert 1 < perplexity(result) < 64
