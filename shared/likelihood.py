"""Log-likelihoods of a shard's labels under a model, and under a unigram model.

The order is that of `shards.scoring_windows`. A label's log-likelihood does not depend on how
windows are batched: padding stands to the right, where causal attention cannot see it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from shared.shards import Shard, Windows, scoring_windows
from shared.sizing import LOGIT_CHUNK

Floats32 = npt.NDArray[np.float32]
Score = Callable[[torch.Tensor, torch.Tensor, npt.NDArray[np.bool_]], Floats32]


def label_log_likelihoods(
    model: LlamaForCausalLM,
    shard: Shard,
    *,
    length: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Floats32:
    """log p(token | tokens before it in its window) in nats, float32 [num_labels].

    Windows hold at most `length` labels; `batch` windows of similar length run together, in fp32.
    `progress(done, total)` counts windows. Raises ValueError when `length` exceeds the context.
    """
    check_length(length, model.config.max_position_embeddings)
    return window_log_likelihoods(
        partial(_score, model), shard, length=length, batch=batch, progress=progress
    )


def window_log_likelihoods(
    score: Score,
    shard: Shard,
    *,
    length: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Floats32:
    """What `score` makes of a shard's windows, in the labels' order, float32 [num_labels].

    `score(inputs, labels, inside)` gets int64 [windows, longest] twice and where they hold labels,
    and returns the log-likelihoods of these, row by row. Windows are those of `scoring_windows`.
    """
    if batch < 1:
        raise ValueError(f"batch {batch}: expected at least 1")
    windows = scoring_windows(shard, length)
    result = np.empty(windows.num_labels, dtype=np.float32)
    order = np.argsort(-windows.lengths, kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs, labels, where = _padded(shard, windows, chosen)
            result[where[where >= 0]] = score(inputs, labels, where >= 0)
            if progress is not None:
                progress(start + len(chosen), len(order))
    return result


def unigram_log_likelihoods(train: Shard, shard: Shard, *, vocab_size: int) -> Floats32:
    """The same labels under token frequencies of `train`, add-one smoothed, float32 [num_labels].

    BOS is no label; where it begins documents it is not counted.
    """
    counts = np.bincount(train.tokens, minlength=vocab_size) + 1.0
    counts[train.bos_id] -= train.num_documents
    windows = scoring_windows(shard, max(1, shard.num_tokens))
    first_labels = np.repeat(windows.starts + 1 - windows.label_starts, windows.lengths)
    labels = shard.tokens[first_labels + np.arange(windows.num_labels)]
    return np.asarray(np.log(counts / counts.sum())[labels], dtype=np.float32)


def _padded(
    shard: Shard, windows: Windows, chosen: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.int64]]:
    """Inputs and labels int64 [windows, longest], and each label's index, -1 where padded."""
    lengths = windows.lengths[chosen]
    column = np.arange(int(lengths.max()))
    inside = column < lengths[:, None]
    index = np.where(inside, windows.starts[chosen][:, None] + column, 0)
    where = np.where(inside, windows.label_starts[chosen][:, None] + column, -1)
    inputs = shard.tokens[index].astype(np.int64)
    labels = shard.tokens[np.where(inside, index + 1, 0)].astype(np.int64)
    return torch.from_numpy(inputs), torch.from_numpy(labels), where


def _score(
    model: LlamaForCausalLM,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    inside: npt.NDArray[np.bool_],
) -> Floats32:
    device = model.lm_head.weight.device
    hidden = model.model(input_ids=inputs.to(device), use_cache=False).last_hidden_state
    mask = torch.from_numpy(inside).to(device)
    rows = hidden[mask].float()
    return chunked_log_likelihoods(
        lambda some: model.lm_head(rows[some]),
        labels.to(device)[mask],
        vocab_size=model.config.vocab_size,
    )


def chunked_log_likelihoods(
    logits_of: Callable[[slice], torch.Tensor], labels: torch.Tensor, *, vocab_size: int
) -> Floats32:
    """log p(label) of each row, float32 [rows], from logits that are made for some rows at a time.

    `logits_of(rows)` gives those [rows, vocab_size] of a slice of the rows, in memory of their own:
    it is written over.
    """
    chunk = max(1, LOGIT_CHUNK // vocab_size)
    parts = []
    for start in range(0, len(labels), chunk):
        some = slice(start, start + chunk)
        logits = logits_of(some).float()
        # Into the same memory: fewer bytes go through the caches.
        torch.log_softmax(logits, dim=1, out=logits)
        parts.append(logits.gather(1, labels[some, None])[:, 0])
    return torch.cat(parts).cpu().numpy()


def check_length(length: int, context: int) -> None:
    """Raises ValueError for windows of no label, or longer than a model's `context` of tokens."""
    if not 1 <= length <= context:
        raise ValueError(f"length {length}: expected from 1 to the context of {context} tokens")
