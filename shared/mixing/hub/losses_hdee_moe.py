"""What a router's choices cost, beside the loss of the language model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_hdee_moe import HdeeMoeConfig


def penalty_loss(probabilities: Tensor, gates: Tensor, widths: Sequence[int]) -> Tensor:
    """P-Penalty: N sum_i M_i P_i of `probabilities` and `gates` [rows, N] (HMoE, 2408.10681).

    P_i is expert i's mean probability; M_i the share of rows that use it, times its width by the
    mean width. Small experts are cheap. With equal widths it equals the balance loss.
    """
    relative = torch.tensor(widths, dtype=torch.float32, device=gates.device)
    used = (gates > 0).float().mean(0) * relative / relative.mean()
    return gates.shape[-1] * (used * probabilities.mean(0)).sum()


def balance_loss(probabilities: Tensor, gates: Tensor) -> Tensor:
    """Load balance: N sum_i T_i P_i, where T_i is the share of rows that use expert i."""
    return penalty_loss(probabilities, gates, [1] * gates.shape[-1])


def entropy_loss(probabilities: Tensor) -> Tensor:
    """Mean entropy of the rows of `probabilities` [rows, N] in nats.

    Minimised, it makes the router use fewer experts. HMoE prints the opposite sign.
    """
    # where a probability is 0 its logarithm would make the gradient NaN
    logs = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    return -(probabilities * logs).sum(-1).mean()


def router_loss(
    config: HdeeMoeConfig,
    decisions: Sequence[tuple[Tensor, Tensor]],
    mask: Tensor | None,
) -> Tensor:
    """The weighted sum of the losses, averaged over the decisions: a scalar.

    A decision is its probabilities and gates [batch, positions, N]. `mask` [batch, positions] is
    not zero where positions count.
    """
    total = decisions[0][0].new_zeros(())
    for probabilities, gates in decisions:
        if mask is None:
            p, g = probabilities.flatten(0, -2), gates.flatten(0, -2)
        else:
            p, g = probabilities[mask != 0], gates[mask != 0]
        if config.penalty_weight:
            total = total + config.penalty_weight * penalty_loss(p, g, config.expert_widths)
        if config.balance_weight:
            total = total + config.balance_weight * balance_loss(p, g)
        if config.entropy_weight:
            total = total + config.entropy_weight * entropy_loss(p)
    return total / len(decisions)
