"""The chunked cross-entropy is the ordinary one."""

import pytest
import torch
from torch.nn import functional

from shared.sizing import LOGIT_CHUNK
from worker.trainer.loss import cross_entropy

VOCAB = 8192


@pytest.mark.parametrize("rows", [1, LOGIT_CHUNK // VOCAB, LOGIT_CHUNK // VOCAB * 2 + 7])
def test_loss_and_gradients_are_those_of_full_logits(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, VOCAB, (rows,), generator=generator)
    loss = cross_entropy(hidden, weight, labels)
    (3 * loss).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = functional.cross_entropy(hidden @ weight.T, labels)
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(ours[0], hidden.grad, atol=1e-4)
    assert torch.allclose(ours[1], weight.grad, atol=1e-4)


def test_a_label_too_unlikely_for_a_float_costs_its_logits_difference() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    loss = cross_entropy(hidden, weight, torch.tensor([1, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(600.0)
    assert torch.allclose(hidden.grad, torch.tensor([[1.0], [-1.0]]))


def test_a_frozen_output_embedding_gets_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(16, 8)
    cross_entropy(hidden, weight, torch.tensor([0, 1, 2, 3])).backward()
    assert weight.grad is None
    assert hidden.grad is not None
