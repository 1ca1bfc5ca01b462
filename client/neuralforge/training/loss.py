"""Cross-entropy on completion tokens, in chunks, its gradient taken in the forward pass.

Logits are vocabulary-wide: they are made for completion tokens only, a bounded chunk at a time, and never kept.
The same idea is known from Liger-Kernel's fused linear cross-entropy; this is written for a CPU's matmuls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from neuralforge.training.losses.context import ExampleRows
from neuralforge.training.soft import SoftRows

CHUNK_BYTES = 32 * 1024 * 1024
"""Memory for one chunk of fp32 probabilities."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per target token: its negative log-likelihood in nats, and whether it was the most likely token."""

    losses: torch.Tensor
    hits: torch.Tensor


def token_scores(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> TokenScores:
    """Score targets (N,) from the head's input `hidden` (N, d); `weight` is (V, d). Nothing is differentiated."""
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    hits = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for rows in _chunks(len(targets), weight.shape[0]):
        logits = _logits(hidden[rows], weight, bias)
        wanted = targets[rows, None]
        log_likelihood = torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(1, wanted)
        losses[rows] = -log_likelihood[:, 0]
        hits[rows] = logits.argmax(dim=1) == targets[rows]
    return TokenScores(losses=losses, hits=hits)


def loss_and_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    scale: float | torch.Tensor = 1.0,
    soft: SoftRows | None = None,
    other: ExampleRows | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each target's loss (N,), and the gradient of `scale` times their sum with respect to `hidden`, (N, d).

    `scale` may be one number a target, (N, 1). With `soft` a target's cross-entropy is weighed and the distance to its
    stored logits added. The examples of `other` have its loss: each of their targets an even share.
    """
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for rows, example in other.parts if other is not None else ():
        logits = _logits(hidden[rows], weight, bias)
        value, d_logits = other.loss.gradient(logits, targets[rows], example, seed=other.seed)  # type: ignore[union-attr]
        losses[rows] = value
        torch.mm((d_logits * example.targets).to(hidden.dtype), weight, out=gradient[rows])
    for rows in _chunks(len(targets), weight.shape[0], without=other):
        wanted = targets[rows, None]
        logits = _logits(hidden[rows], weight, bias)
        stored = None if soft is None else soft.at(rows)
        kept = None if stored is None else logits.gather(1, stored.ids).float()
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        del logits  # as large as the chunk itself
        likelihood = probabilities.gather(1, wanted)
        log_likelihood = likelihood.clamp_min(1e-38).log()
        # d loss / d logits = softmax - one-hot
        probabilities.scatter_(1, wanted, likelihood - 1.0)
        if stored is None or kept is None:
            losses[rows] = -log_likelihood[:, 0]
        else:
            if not stored.even:  # a pass over the whole chunk
                probabilities.mul_(stored.hard[:, None])
            distance, pull = stored.distance(kept)
            losses[rows] = distance - log_likelihood[:, 0] * stored.hard
            probabilities.scatter_add_(1, stored.ids, pull)
        torch.mm(probabilities.to(hidden.dtype), weight, out=gradient[rows])
    return losses, gradient.mul_(scale)


def top_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values, both (N, k), of the largest logits at each row of `hidden` (N, d); values in fp32."""
    found = [_logits(hidden[rows], weight, bias).topk(k, dim=1) for rows in _chunks(len(hidden), weight.shape[0])]
    return torch.cat([top.indices for top in found]), torch.cat([top.values.float() for top in found])


class HeadLoss(torch.autograd.Function):
    """Each target's loss, as a node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        soft: SoftRows | None = None,
        other: ExampleRows | None = None,
    ) -> torch.Tensor:
        """The losses (N,); the gradient is already made and waits in `ctx`."""
        losses, gradient = loss_and_gradient(hidden, weight, bias, targets, soft=soft, other=other)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Pass the waiting gradient on; upstream (N,) is what each target's loss is multiplied with."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None, None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())


def _chunks(rows: int, vocabulary: int, *, without: ExampleRows | None = None) -> list[slice]:
    size = max(16, CHUNK_BYTES // (4 * vocabulary))
    left, begin = [], 0
    for part, _ in without.parts if without is not None else ():
        left.append((begin, part.start))
        begin = part.stop
    left.append((begin, rows))
    return [slice(at, min(at + size, end)) for first, end in left for at in range(first, end, size)]
