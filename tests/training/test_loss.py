"""The chunked cross-entropy against torch's, and its gradient against autograd's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from neuralforge.training import loss as loss_module
from neuralforge.training.loss import HeadLoss, loss_and_gradient, token_scores


def head(rows: int = 300, width: int = 24, vocabulary: int = 97, *, bias: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    offset = torch.randn(vocabulary, generator=generator) if bias else torch.zeros(vocabulary)
    return hidden, weight, offset, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("chunk_bytes", [1, 16 * 97 * 4, 32 * 2**20])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradient_are_autograds_whatever_the_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, with_bias: bool
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    hidden, weight, offset, targets = head()
    bias = offset if with_bias else None
    watched = hidden.clone().requires_grad_()
    expected = functional.cross_entropy(functional.linear(watched, weight, bias), targets, reduction="sum")
    (expected * 0.25).backward()
    losses, gradient = loss_and_gradient(hidden, weight, bias, targets, scale=0.25)
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    assert watched.grad is not None
    assert float((gradient - watched.grad).abs().max()) < 1e-5


def test_the_node_passes_a_scaled_gradient_on() -> None:
    hidden, weight, offset, targets = head()
    a, b = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    (functional.cross_entropy(functional.linear(a, weight, offset), targets, reduction="mean") * 8).backward()
    losses = HeadLoss.apply(b, weight, offset, targets)
    (losses.mean() * 8).backward()  # as under gradient scaling
    assert a.grad is not None
    assert b.grad is not None
    assert float((a.grad - b.grad).abs().max()) < 1e-5


def test_scores_are_torchs_losses_and_hits() -> None:
    hidden, weight, offset, targets = head()
    logits = functional.linear(hidden, weight, offset)
    scores = token_scores(hidden, weight, offset, targets)
    assert torch.allclose(scores.losses, functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    assert torch.equal(scores.hits, logits.argmax(1) == targets)


def test_an_impossible_token_has_a_finite_loss() -> None:
    hidden = torch.tensor([[1000.0]])
    weight = torch.tensor([[1.0], [-1.0]])
    losses, gradient = loss_and_gradient(hidden, weight, None, torch.tensor([1]))
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
