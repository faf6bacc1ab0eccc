"""Every ensemble against whole distributions over the vocabulary, of real models of unequal width.

The direct computation keeps each model's softmax over all tokens, mixes those with weights that it
updates by Bayes' rule token by token, and reads off the probability of the label.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.specs import ModelShape
from shared.ensemble import (
    cached_prior,
    heaviest,
    posterior_ensemble,
    probability_average,
)
from shared.likelihood import label_log_likelihoods
from shared.model import build
from shared.shards import BOS_ID, Shard, scoring_windows, write_shard

VOCAB, CONTEXT = 61, 12
SHAPE = ModelShape(
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    ffn_width=24,
    context_length=CONTEXT,
)


def text(path: Path, rng_seed: int) -> Shard:
    rng = np.random.default_rng(rng_seed)
    documents = []
    for length in rng.integers(3, 40, 5):
        tokens = np.concatenate([[BOS_ID], rng.integers(3, VOCAB, length)])
        documents.append((tokens, int(length)))
    write_shard(path, documents, vocab_size=VOCAB)
    return Shard.read(path, vocab_size=VOCAB)


class Direct:
    """Distributions [experts, labels, vocabulary] and labels, window by window, in fp64."""

    def __init__(self, models, shard: Shard) -> None:
        windows = scoring_windows(shard, CONTEXT)
        self.windows = []
        for start, length in zip(windows.starts, windows.lengths, strict=True):
            tokens = torch.tensor(shard.tokens[start : start + length + 1].astype(np.int64))
            with torch.inference_mode():
                stack = [
                    model(input_ids=tokens[None, :-1]).logits[0].double().softmax(dim=-1).numpy()
                    for model in models
                ]
            self.windows.append((np.stack(stack), tokens[1:].numpy()))

    def nats(self, weights_of: Callable[[np.ndarray], np.ndarray], prior: np.ndarray) -> float:
        """Total log-likelihood; `weights_of` makes weights of the posterior before each label."""
        total = 0.0
        for distributions, labels in self.windows:
            posterior = prior.copy()
            for position, label in enumerate(labels):
                weights = weights_of(posterior)
                mixed = np.einsum("i,iv->v", weights, distributions[:, position])
                assert mixed.sum() == pytest.approx(1.0, abs=1e-12)
                total += np.log(mixed[label])
                posterior = posterior * distributions[:, position, label]
                posterior = posterior / posterior.sum()
        return total


def keep_all(weights: np.ndarray) -> np.ndarray:
    return weights


def keep_top(top_k: int) -> Callable[[np.ndarray], np.ndarray]:
    def keep(weights: np.ndarray) -> np.ndarray:
        least = np.sort(weights)[-top_k]
        kept = np.where(weights >= least * (1 - 1e-9), weights, 0.0)
        return kept / kept.sum()

    return keep


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vocabulary")
    models = []
    for rng_seed, width in enumerate((16, 24, 32, 24)):
        model = build(SHAPE.model_copy(update={"ffn_width": width}), rng_seed=rng_seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)
        models.append(model.eval())
    dev, test = text(folder / "dev", 1), text(folder / "test", 2)
    rows = [
        np.stack([label_log_likelihoods(m, shard, length=CONTEXT, batch=3) for m in models])
        for shard in (dev, test)
    ]
    starts = [scoring_windows(shard, CONTEXT).label_starts for shard in (dev, test)]
    return rows, starts, Direct(models, test)


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize("mode", ["average", "posterior", "cached-prior"])
def test_an_ensemble_agrees_with_the_mixture_of_whole_distributions(measured, mode, top_k) -> None:
    (dev, test), (dev_starts, starts), direct = measured
    prior = cached_prior(dev, dev_starts)
    uniform = np.full(4, 0.25)
    keep = keep_all if top_k is None else keep_top(top_k)
    if mode == "average":
        chosen = list(range(4)) if top_k is None else heaviest(prior, top_k)
        ours = probability_average(test[chosen])
        fixed = np.isin(np.arange(4), chosen) / len(chosen)
        expected = direct.nats(lambda _: fixed, uniform)
    elif mode == "posterior":
        ours = posterior_ensemble(test, starts, top_k=top_k)
        expected = direct.nats(keep, uniform)
    else:
        ours = posterior_ensemble(test, starts, prior, top_k=top_k)
        expected = direct.nats(keep, np.exp(prior))
    assert ours.sum() == pytest.approx(expected, rel=1e-6)
