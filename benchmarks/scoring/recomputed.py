"""Every mode of every ensemble from its models, as the paper's code goes about it.

An ensemble's three models are in memory together; each mode runs all of them again over all test
text, and the cached prior once more over dev text; each expert's distribution over the whole
vocabulary is computed. What is wrong in that code (it averages log-probabilities, estimates the
prior on test text and begins it anew with every batch) is right here, or there would be nothing to
compare with. Weights are kept in fp64, and batches are those of ours, the fastest on a CPU.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from benchmarks.scoring.ground import ENSEMBLES, Ground
from benchmarks.scoring.ours import MODES, Perplexities
from benchmarks.scoring.passes import Batch, batches, logits
from protocol.blobs import ShardManifest
from shared import model as models

DECAY, MAX_WINDOWS = 0.3, 100

Models = list[LlamaForCausalLM]


def score(ground: Ground) -> Perplexities:
    """The same perplexities as `ours.score`, without keeping anything."""
    found: Perplexities = {}
    for ensemble, names in ENSEMBLES.items():
        experts = [models.load(ground.experts[n].path, ground.experts[n].shape) for n in names]
        for mode in MODES:
            for dev, test in zip(ground.dev, ground.test, strict=True):
                found[ensemble, mode, test.domain] = _perplexity(ground, experts, mode, dev, test)
    return found


def _perplexity(
    ground: Ground, experts: Models, mode: str, dev: ShardManifest, test: ShardManifest
) -> float:
    uniform = torch.full((len(experts),), 1 / len(experts), dtype=torch.float64)
    context = experts[0].config.max_position_embeddings
    prior = uniform
    if mode == "cached prior":
        prior = _cached_prior(experts, batches(ground, dev, context), uniform)
    found = [
        mixture.gather(2, labels[..., None])
        for mixture, labels in _mixtures(
            experts, batches(ground, test, context), prior, adapts=mode != "average"
        )
    ]
    return float((-torch.cat([one.flatten() for one in found]).double().mean()).exp())


def _mixtures(
    experts: Models, some: Sequence[Batch], prior: torch.Tensor, *, adapts: bool
) -> Iterator[Batch]:
    """Log-probabilities of the whole vocabulary [windows, labels, vocab], and the labels."""
    for inputs, labels in some:
        each = _distributions(experts, inputs)
        weights = prior[:, None, None].expand(*each.shape[:3])
        if adapts:
            weights = _posterior(each, labels, prior)
        yield (weights.float()[..., None] * each.exp()).sum(0).log(), labels


def _distributions(experts: Models, inputs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [experts, windows, labels, vocab]."""
    return torch.stack([logits(expert, inputs).log_softmax(-1) for expert in experts])


def _posterior(each: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Each expert's weight before each label, float64 [experts, windows, labels]."""
    where = labels.expand(len(each), *labels.shape)[..., None]
    likelihoods = each.gather(3, where)[..., 0].double()
    evidence = prior.log()[:, None, None] + likelihoods.cumsum(2) - likelihoods
    return evidence.softmax(0)


def _cached_prior(experts: Models, some: Sequence[Batch], uniform: torch.Tensor) -> torch.Tensor:
    """Branch-Train-Merge's moving average of the windows' posteriors, float64 [experts]."""
    means: list[torch.Tensor] = []
    for inputs, labels in some:
        weights = _posterior(_distributions(experts, inputs), labels, uniform)
        means.extend(weights.mean(2).T)
    prior = means[0]
    for mean in means[1:MAX_WINDOWS]:
        prior = (1 - DECAY) * prior + DECAY * mean
    return prior / prior.sum()
