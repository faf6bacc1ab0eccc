"""Which experts a position goes through: evidence, probabilities, gates, and rows by expert."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from .configuration_hdee_moe import HdeeMoeConfig

_NEVER = -(2**60)
_FIRST, _SECOND, _PRIME = 1_000_003, 998_244_353, 2**31 - 1
"""Spread pairs of tokens over buckets; the tables of mixtures that exist depend on them."""


class Routes:
    """The gates of one decision, and the rows that they send to each expert.

    `gates` fp32 [batch, positions, experts], the gates of a position sum to 1. `sole` is the
    expert that all positions go through, when it is a single one: then there is nothing to index
    and nothing to weigh. `parts` holds otherwise, for each expert in use, its rows (int64 [n], None
    for all) of the batch * positions, and their gates [n, 1].
    """

    __slots__ = ("gates", "parts", "sole")

    def __init__(self, gates: Tensor) -> None:
        self.gates = gates
        rows = gates.reshape(-1, gates.shape[-1])
        used = rows > 0
        counts = used.sum(0).tolist()
        chosen = [expert for expert, count in enumerate(counts) if count]
        if not chosen:
            raise ValueError("gates: no expert has any, expected some that sum to 1")
        self.sole = chosen[0] if sum(counts) == rows.shape[0] == counts[chosen[0]] else None
        self.parts: list[tuple[int, Tensor | None, Tensor]] = []
        if self.sole is not None:
            return
        for expert in chosen:
            weights = rows[:, expert : expert + 1]
            if counts[expert] == rows.shape[0]:
                self.parts.append((expert, None, weights))
            else:
                index = used[:, expert].nonzero()[:, 0]
                self.parts.append((expert, index, weights[index]))

    def mix(
        self, inputs: Tensor, experts: Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList
    ) -> Tensor:
        """The gate-weighted sum of what the experts make of their rows.

        `inputs` [batch, positions] or [batch, positions, features], and so is the result, with the
        experts' features. Each expert computes the rows that go through it, and no others.
        """
        if self.sole is not None:
            return experts[self.sole](inputs)
        lead = self.gates.shape[:-1]
        rows = inputs.reshape(lead.numel(), *inputs.shape[2:])
        result = None
        for expert, index, weights in self.parts:
            made = experts[expert](rows if index is None else rows[index])
            made = made * weights.to(made.dtype)
            if index is None:
                result = made if result is None else result + made
            else:
                if result is None:
                    result = made.new_zeros(lead.numel(), made.shape[-1])
                result = result.index_add(0, index, made)
        assert result is not None
        return result.view(*lead, -1)


class Selection:
    """How gates come from probabilities; the fields of the configuration, read once."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        self.kind = "all" if config.router == "gateless" else config.selection
        self.top_k, self.top_p = config.gate_top_k, config.gate_top_p
        self.threshold = config.threshold
        self.always_on = config.always_on

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Gates [..., N] from probabilities [..., N]: zero where not selected, with the sum 1.

        soft: those of at least `threshold`, and the largest. top_k: the `gate_top_k` largest.
        top_p: the fewest that reach the share `gate_top_p` of the mass. `always_on` is selected in
        any case; the others are ranked, and their mass counted, without it. Without a router all
        are selected.
        """
        if self.kind == "all":
            return probabilities
        ranked = probabilities
        if self.always_on is not None:
            ranked = probabilities.clone()
            ranked[..., self.always_on] = 0
        chosen = self._chosen(ranked)
        if self.always_on is not None:
            chosen[..., self.always_on] = True
        kept = probabilities * chosen
        return kept / kept.sum(-1, keepdim=True)

    def _chosen(self, ranked: Tensor) -> Tensor:
        if self.kind == "soft":
            return (ranked >= self.threshold) | (ranked == ranked.amax(-1, keepdim=True))
        # stable, so that of equal ones it is always the first
        ordered, order = ranked.sort(dim=-1, descending=True, stable=True)
        none = torch.zeros_like(ranked, dtype=torch.bool)
        if self.kind == "top_k":
            return none.scatter_(-1, order[..., : self.top_k], True)
        before = ordered.cumsum(-1) - ordered
        return none.scatter_(-1, order, before < self.top_p * ordered.sum(-1, keepdim=True))


def _faded_sums(said: Tensor, age: Tensor, decay: float) -> Tensor:
    """Sums over the positions of a document so far, fading by `decay` a position: [B, S, N].

    `age` [B, S] counts the positions since the document began. A sum over 2k positions is made of
    two over k, so that neither the length nor the sums before cost precision.
    """
    result, reach = said, 1
    while reach < said.shape[1]:
        earlier = result[:, :-reach] * decay**reach
        earlier = earlier.where((age[:, reach:] >= reach)[..., None], 0.0)
        result = torch.cat([result[:, :reach], result[:, reach:] + earlier], dim=1)
        reach *= 2
    return result


class HdeeMoePrefixRouter(nn.Module):
    """Naive Bayes over the distinct tokens, and pairs of tokens, so far.

    `log_likelihoods` fp32 [vocab + buckets, N]: log p(token | expert's domain), and of the pairs.
    """

    log_likelihoods: Tensor

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__()
        self.vocab_size, self.pairs = config.vocab_size, config.prefix_pairs
        form = self.vocab_size + self.pairs, config.num_experts
        self.register_buffer("log_likelihoods", torch.zeros(form, dtype=torch.float32))
        self.sharpness = config.prefix_sharpness
        self.saturation = config.prefix_saturation
        self.window = config.prefix_window
        self.decay = config.prefix_decay
        self.bos_id = config.bos_token_id

    def resize(self, vocab_size: int) -> None:
        """Make it one of so many tokens: those beyond the old ones say nothing of any domain."""
        tokens, pairs = self.log_likelihoods.split([self.vocab_size, self.pairs])
        new = tokens.new_zeros(max(0, vocab_size - self.vocab_size), tokens.shape[1])
        self.log_likelihoods = torch.cat([tokens[:vocab_size], new, pairs])
        self.vocab_size = vocab_size

    @override
    def forward(self, ids: Tensor, last: int) -> Tensor:
        """Probabilities fp32 [batch, last, N] at the last positions of `ids`, -1 where padded."""
        said, amount = self.evidence(ids, last=last)
        return (self.sharpness * said / (1 + amount) ** self.saturation).softmax(-1)

    def evidence(self, ids: Tensor, *, last: int) -> tuple[Tensor, Tensor]:
        """What the tokens so far say of each expert's domain, fp32 [batch, last, N] in nats.

        `ids` int64 [batch, length], -1 where padded. At position t it is the sum over the positions
        s up to t of `prefix_decay`^(t-s) times the row of the token at s, if that token did not
        occur among the `prefix_window` tokens before s; and likewise of the pair that it ends. It
        begins anew at each BOS, which itself counts for nothing. Given are those of the `last`
        positions, and the amount of the evidence: the same sum of ones, fp32 [batch, last, 1].
        """
        length = ids.shape[1]
        place = torch.arange(length, device=ids.device)
        starts = torch.zeros_like(ids)
        if self.bos_id is not None:
            begins = ids == self.bos_id
            starts = (place * begins).cummax(1).values
            ids = ids.masked_fill(begins, -1)
        since = starts if length <= self.window else (place - self.window).clamp(min=starts)
        terms = self._terms(ids)
        counted = terms >= 0
        for part, kept in zip(terms.split(length, 1), counted.split(length, 1), strict=True):
            kept &= _previous(part) < since
        rows = functional.embedding(terms.clamp(min=0), self.log_likelihoods.float())
        fading = self.decay ** (length - 1 - place).to(rows.dtype)
        if last == 1:
            counted &= (place >= starts[:, -1:]).repeat(1, terms.shape[1] // length)
            weights = counted * fading.repeat(terms.shape[1] // length)
            return weights[:, None] @ rows, weights.sum(1)[:, None, None]
        rows = functional.pad(rows, (0, 1), value=1.0).where(counted[..., None], 0.0)
        rows = rows.unflatten(1, (-1, length)).sum(1)
        faded = _faded_sums(rows, place - starts, self.decay)[:, -last:]
        return faded[..., :-1], faded[..., -1:]

    def _terms(self, ids: Tensor) -> Tensor:
        """Rows of the table: each position's token, then the pairs that end there; -1 for none.

        int64 [batch, length], or [batch, 2 * length] where pairs count.
        """
        if not self.pairs:
            return ids
        before = functional.pad(ids[:, :-1], (1, 0), value=-1)
        bucket = (before * _FIRST + ids * _SECOND) % _PRIME % self.pairs
        both = (before >= 0) & (ids >= 0)
        return torch.cat([ids, (self.vocab_size + bucket).where(both, -1)], dim=1)


def _previous(ids: Tensor) -> Tensor:
    """The place before, int64 [batch, length], where the same id stands; far away if none."""
    ordered, order = ids.sort(dim=1, stable=True)
    earlier = order[:, :-1].masked_fill(ordered[:, 1:] != ordered[:, :-1], _NEVER)
    return torch.full_like(ids, _NEVER).scatter_(1, order[:, 1:], earlier)


class HdeeMoeLinearRouter(nn.Linear):
    """A linear map from features to experts: `weight` [N, d], perhaps `bias` [N]."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__(config.hidden_size, config.num_experts, bias=config.router_bias)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Probabilities fp32 [..., N]."""
        return super().forward(inputs).softmax(-1, dtype=torch.float32)


class HdeeMoeDeepRouter(nn.Module):
    """Two linear maps with a SiLU between them."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__()
        features = config.router_hidden_size
        assert features is not None
        self.hidden = nn.Linear(config.hidden_size, features, bias=False)
        self.out = nn.Linear(features, config.num_experts, bias=False)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Probabilities fp32 [..., N]."""
        return self.out(functional.silu(self.hidden(inputs))).softmax(-1, dtype=torch.float32)


class HdeeMoeFineRouter(nn.Module):
    """One linear router for each of the FFN's projections."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__()
        self.gate_proj = HdeeMoeLinearRouter(config)
        self.up_proj = HdeeMoeLinearRouter(config)
        self.down_proj = HdeeMoeLinearRouter(config)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Probabilities fp32 [3, ..., N], for gate, up and down."""
        return torch.stack([router(inputs) for router in self.children()])
