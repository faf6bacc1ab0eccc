"""Mean cross-entropy of next tokens without ever holding all logits."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from typing_extensions import override

from shared.sizing import LOGIT_CHUNK


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, so that no logits are kept."""

    @staticmethod
    @override
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        num_rows, vocab_size = len(hidden), len(weight)
        rows = max(1, LOGIT_CHUNK // vocab_size)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient: torch.Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, num_rows, rows):
            part = hidden[start : start + rows]
            wanted = labels[start : start + rows, None]
            logits = (part @ weight.T).float()
            largest, ours = logits.amax(dim=1, keepdim=True), logits.gather(1, wanted)
            # Into the same memory: fewer bytes go through the caches.
            gradient = torch.softmax(logits, dim=1, out=logits)
            # The likeliest label gives the normaliser, and spares a second exp of every logit.
            log_total = largest - gradient.amax(dim=1, keepdim=True).log()
            total += (log_total - ours).sum()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            hidden_gradient[start : start + rows] = gradient @ weight
            if not ctx.needs_input_grad[1]:
                continue
            more = gradient.T @ part
            if weight_gradient is None:
                weight_gradient = more.to(weight.dtype)
            else:
                weight_gradient += more
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / num_rows

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        share = scale / len(hidden_gradient)
        return (
            hidden_gradient * share,
            None if weight_gradient is None else weight_gradient * share,
            None,
        )


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats, fp32 scalar.

    `hidden` [tokens, features], output embedding `weight` [vocab, features], `labels` int64
    [tokens]. At most `sizing.LOGIT_CHUNK` logits exist at a time.
    """
    loss: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels)
    return loss
