"""Text from an ensemble: the distribution of all its members, weighted by their posterior.

A member's weight at a token is its prior times the likelihood that it gave the text so far, the
prompt included: the posterior ensemble of `shared.ensemble`, one window long. Every member computes
every token, with a KV cache of its own; that is what a mixture saves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaForCausalLM


class GenerationError(ValueError):
    """What was asked for cannot be generated; the message names the argument."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: from the most likely ones that have the mass `top_p` together.

    Their probabilities are taken to the power 1 / `temperature`, before that. At temperature 0 it
    is the most likely token, and nothing is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    rng_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GenerationError(f"temperature {self.temperature}: expected at least 0")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p {self.top_p}: expected above 0, at most 1")


class PosteriorEnsemble:
    """Models of one vocabulary that read the same text, a batch of rows of equal length.

    `log_weights`, fp64 [members, rows], are the members' logarithms of prior times likelihood of
    what was read: their posterior is its softmax over members.
    """

    def __init__(
        self, models: Sequence[LlamaForCausalLM], *, log_prior: Sequence[float] | None = None
    ) -> None:
        """The prior is uniform unless given, in nats; it need not be normalised.

        Raises GenerationError for no models, other vocabularies or a prior that does not fit.
        """
        sizes = [model.config.vocab_size for model in models]
        if len(set(sizes)) != 1:
            raise GenerationError(
                f"models: vocabularies of {sizes} tokens, expected one or more models of one size"
            )
        prior = np.zeros(len(models)) if log_prior is None else np.asarray(log_prior, np.float64)
        if prior.shape != (len(models),) or np.isnan(prior).any() or not np.isfinite(prior.max()):
            raise GenerationError(
                f"log_prior: {prior.tolist()}, expected {len(models)} numbers below infinity, one "
                "of them finite"
            )
        self._models = tuple(models)
        self._caches = [DynamicCache(config=model.config) for model in models]
        self._prior = torch.from_numpy(prior)
        self._next: torch.Tensor | None = None
        self._length = 0
        self.log_weights = self._prior[:, None]

    @property
    def posterior(self) -> torch.Tensor:
        """The members' weights after what was read, fp64 [members, rows]; columns sum to 1."""
        return torch.softmax(self.log_weights, dim=0)

    @property
    def context_length(self) -> int:
        """The most tokens that all members can read."""
        return min(model.config.max_position_embeddings for model in self._models)

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the token after `tokens` int64 [rows, count]: fp64 [rows, vocab].

        What was read before stands before them. Raises GenerationError for tokens that are none, or
        beyond the context.
        """
        rows, count = tokens.shape
        if count < 1 or rows < 1:
            raise GenerationError(f"tokens: {rows} rows of {count}, expected at least 1 of each")
        if self._length + count > self.context_length:
            raise GenerationError(
                f"tokens: {self._length + count}, expected at most the {self.context_length} of "
                "the context"
            )
        following = [
            self._member(number, tokens.to(model.device))
            for number, model in enumerate(self._models)
        ]
        said = torch.stack([one[0] for one in following])
        self.log_weights = self.log_weights + said
        self._next = torch.stack([one[1] for one in following])
        self._length += count
        weighted = torch.log_softmax(self.log_weights, dim=0)[:, :, None] + self._next
        return torch.logsumexp(weighted, dim=0)

    def _member(self, number: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Its log-likelihood of `tokens` [rows], and its log-probabilities after them, fp64."""
        out = self._models[number](input_ids=tokens, past_key_values=self._caches[number])
        log_p = torch.log_softmax(out.logits.float(), dim=-1).double().cpu()
        labels = tokens[:, 1:, None].cpu()
        said = log_p[:, :-1].gather(2, labels)[:, :, 0].sum(dim=1)
        if self._next is not None:
            said = said + self._next[number].gather(1, tokens[:, :1].cpu())[:, 0]
        return said, log_p[:, -1]


def generate(
    ensemble: PosteriorEnsemble,
    prompt: torch.Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    eos_id: int | None = None,
) -> torch.Tensor:
    """`prompt` int64 [rows, count] and what the ensemble goes on with, int64 [rows, longer].

    A row that has come to `eos_id` is filled up with it; generation stops when all rows have, or
    after `max_new_tokens`. Raises GenerationError, also where the context does not hold it all.
    """
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens {max_new_tokens}: expected at least 1")
    if prompt.shape[1] + max_new_tokens > ensemble.context_length:
        raise GenerationError(
            f"max_new_tokens {max_new_tokens}: with {prompt.shape[1]} tokens of prompt expected at "
            f"most {ensemble.context_length - prompt.shape[1]} in a context of "
            f"{ensemble.context_length}"
        )
    generator = torch.Generator().manual_seed(sampling.rng_seed)
    text, unread = prompt, prompt
    ended = torch.zeros(len(prompt), dtype=torch.bool)
    for _ in range(max_new_tokens):
        chosen = choose(ensemble.read(unread), sampling, generator)
        if eos_id is not None:
            chosen[ended] = eos_id
            ended |= chosen == eos_id
        unread = chosen[:, None]
        text = torch.cat([text, unread], dim=1)
        if ended.all():
            break
    return text


def choose(log_p: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of log-probabilities [rows, vocab], int64 [rows]."""
    if sampling.temperature == 0:
        return log_p.argmax(dim=-1)
    p = torch.softmax(log_p / sampling.temperature, dim=-1)
    ordered, tokens = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < sampling.top_p, ordered, 0.0)
    drawn = torch.multinomial(kept, 1, generator=generator)
    return tokens.gather(1, drawn)[:, 0]
