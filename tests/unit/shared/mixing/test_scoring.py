"""Label log-likelihoods under a mixture, however windows are batched."""

import numpy as np
import pytest
import torch

from shared.mixing.scoring import mixture_log_likelihoods
from shared.shards import BOS_ID, Shard, scoring_windows

LENGTH = 16


def shard_of(lengths: list[int]) -> Shard:
    tokens = np.random.default_rng(3).integers(2, 48, sum(lengths)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens[offsets[:-1]] = BOS_ID
    return Shard(tokens, offsets, np.asarray(lengths, dtype=np.int64) * 3)


SHARD = shard_of([40, 3, 17, 2, 1, 25])


@pytest.mark.parametrize(
    "changes",
    [
        {"owned": ["embeddings", "head", "norms"]},
        {"selection": "top_k", "gate_top_k": 1},
        {"router": "linear"},
    ],
)
def test_likelihoods_are_those_of_each_window_alone(tiny_mixture, changes) -> None:
    model = tiny_mixture(**changes)
    windows = scoring_windows(SHARD, LENGTH)
    result = mixture_log_likelihoods(model, SHARD, length=LENGTH, batch=4)
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
        assert np.abs(result[first : first + length] - expected.numpy()).max() < 1e-4


def test_forced_gates_score_one_expert(tiny_mixture) -> None:
    model = tiny_mixture(owned=["head"])
    scored = [
        mixture_log_likelihoods(
            model, SHARD, length=LENGTH, batch=3, gates=model.forced(name, like=torch.tensor(0))
        )
        for name in model.config.expert_names
    ]
    assert np.abs(scored[0] - scored[1]).mean() > 0.1
    assert np.abs(scored[0] - scored[2]).mean() > 0.1


def test_progress_counts_windows_to_the_end(tiny_mixture) -> None:
    seen: list[tuple[int, int]] = []
    mixture_log_likelihoods(
        tiny_mixture(),
        SHARD,
        length=LENGTH,
        batch=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    total = len(scoring_windows(SHARD, LENGTH).starts)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize(("length", "batch"), [(0, 1), (65, 1), (16, 0)])
def test_windows_that_the_model_cannot_read_are_refused(tiny_mixture, length, batch) -> None:
    with pytest.raises(ValueError, match="expected"):
        mixture_log_likelihoods(tiny_mixture(), SHARD, length=length, batch=batch)


def test_gates_of_another_shape_are_refused(tiny_mixture) -> None:
    with pytest.raises(ValueError, match="gates"):
        mixture_log_likelihoods(
            tiny_mixture(), SHARD, length=LENGTH, batch=2, gates=torch.ones(2) / 2
        )
