"""What experts own: FFNs of unequal width, embeddings, heads, norms, projections.

Each computes the rows that its gates send to it: grouped by expert, nothing padded to the widest.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from typing_extensions import override

from .configuration_hdee_moe import HdeeMoeConfig
from .routing_hdee_moe import (
    HdeeMoeDeepRouter,
    HdeeMoeFineRouter,
    HdeeMoeLinearRouter,
    Routes,
    Selection,
)

Decision = tuple[Tensor, Tensor]
"""The router's probabilities before selection and the gates, each fp32 [batch, positions, N]."""

_ROUTERS = {"linear": HdeeMoeLinearRouter, "fine": HdeeMoeFineRouter, "deep": HdeeMoeDeepRouter}


class HdeeMoeRMSNorm(nn.Module):
    """RMS norm, computed in fp32."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    @override
    def forward(self, hidden: Tensor) -> Tensor:
        """The normalised features, in their own dtype."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class HdeeMoeExperts(nn.Module):
    """One module for each expert; the result is the gate-weighted sum of theirs."""

    def __init__(self, config: HdeeMoeConfig, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(make() for _ in range(config.num_experts))

    @override
    def forward(self, inputs: Tensor, routes: Routes) -> Tensor:
        """`inputs` [batch, positions, ...], token ids or features, to features."""
        return routes.mix(inputs, self.experts)


class HdeeMoeNorms(HdeeMoeExperts):
    """One RMS norm for each expert. Weights enter linearly: their mean is the mean of the norms."""

    @override
    def forward(self, inputs: Tensor, routes: Routes) -> Tensor:
        """The features [batch, positions, hidden] by the gate-weighted mean of the weights."""
        if routes.sole is not None:
            return self.experts[routes.sole](inputs)
        norms = cast("list[HdeeMoeRMSNorm]", list(self.experts))
        weights = torch.stack([norm.weight for norm in norms])
        mean = routes.gates.to(weights.dtype) @ weights
        return mean * functional.rms_norm(inputs, inputs.shape[-1:], eps=norms[0].eps)


class HdeeMoeHeads(HdeeMoeExperts):
    """One head for each expert."""

    @override
    def forward(self, inputs: Tensor, routes: Routes) -> Tensor:
        """Logits [batch, positions, vocab]: an expert's own where it is alone at a position.

        Elsewhere they are the log of the gate-weighted mean of the experts' probabilities.
        """
        if routes.sole is not None:
            return self.experts[routes.sole](inputs)
        lead = routes.gates.shape[:-1]
        rows = inputs.reshape(lead.numel(), -1)
        alone = (routes.gates.reshape(len(rows), -1) > 0).sum(-1, keepdim=True) == 1
        result = None
        for expert, index, weights in routes.parts:
            mine = slice(None) if index is None else index
            made = self.experts[expert](rows[mine])
            share = made.logsumexp(-1, keepdim=True) - weights.log().to(made.dtype)
            made = made - share.masked_fill(alone[mine], 0.0)
            if result is None:
                result = made.new_full((len(rows), made.shape[-1]), -torch.inf)
            if index is None:
                result = torch.logaddexp(result, made)
            else:
                result = result.index_copy(0, index, torch.logaddexp(result[index], made))
        assert result is not None
        return result.view(*lead, -1)


class HdeeMoeFFN(nn.Module):
    """An expert's SwiGLU of its own width, or a layer's that all experts share."""

    def __init__(self, config: HdeeMoeConfig, width: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.mlp_bias
        self.width = width
        self.gate_proj = nn.Linear(hidden, width, bias=bias)
        self.up_proj = nn.Linear(hidden, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        return self.down_proj(self.act_fn(self.gate_proj(inputs)) * self.up_proj(inputs))

    def padded(self, projection: str, widest: int, inputs: Tensor) -> Tensor:
        """What the gate or up projection makes, with zeros up to the width of the widest."""
        made = getattr(self, projection)(inputs)
        return functional.pad(made, (0, widest - self.width))

    def lowered(self, features: Tensor) -> Tensor:
        """What the down projection makes of the first `width` features."""
        return self.down_proj(features[..., : self.width])


class HdeeMoeExpertFFN(nn.Module):
    """A layer's FFN of experts, with its own router where the layers decide for themselves."""

    def __init__(self, config: HdeeMoeConfig) -> None:
        super().__init__()
        self.widest = max(config.expert_widths)
        self.select = Selection(config)
        self.experts = nn.ModuleList(HdeeMoeFFN(config, width) for width in config.expert_widths)
        self.fine = config.router == "fine"
        self.router = _ROUTERS[config.router](config) if config.router in _ROUTERS else None

    @override
    def forward(self, inputs: Tensor, routes: Routes | None) -> tuple[Tensor, Decision | None]:
        """[batch, positions, hidden] to the same, and what this layer decided.

        `routes` are those of the whole model; None where this layer's router decides.
        """
        if routes is not None:
            made = self._mixed(inputs, [routes] * 3) if self.fine else self._sum(inputs, routes)
            return made, None
        assert self.router is not None
        probabilities = self.router(inputs)
        gates = self.select(probabilities)
        if not self.fine:
            return self._sum(inputs, Routes(gates)), (probabilities, gates)
        made = self._mixed(inputs, [Routes(each) for each in gates])
        return made, (probabilities.mean(0), gates.mean(0))

    def _sum(self, inputs: Tensor, routes: Routes) -> Tensor:
        return routes.mix(inputs, self.experts)

    def _mixed(self, inputs: Tensor, routes: list[Routes]) -> Tensor:
        """Gate and up are mixed before their product, aligned at unit 0; then each one's down.

        FFNs that are prefixes of a wider one have the same units in the same places.
        """
        experts = cast("list[HdeeMoeFFN]", list(self.experts))
        gate, up = (
            route.mix(inputs, [partial(expert.padded, name, self.widest) for expert in experts])
            for route, name in zip(routes[:2], ("gate_proj", "up_proj"), strict=True)
        )
        features = experts[0].act_fn(gate) * up
        return routes[2].mix(features, [expert.lowered for expert in experts])
