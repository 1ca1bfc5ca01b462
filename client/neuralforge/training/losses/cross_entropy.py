"""Cross-entropy of completion tokens: what is trained on where nothing else is said."""

from __future__ import annotations

import torch
from torch.nn import functional

from neuralforge.training.losses.context import LossContext


def cross_entropy(predictions: torch.Tensor, targets: torch.Tensor, context: LossContext | None = None) -> torch.Tensor:
    """Mean of −log p(target) over the targets; (N, V) logits and (N,) ids to a scalar, in nats."""
    return functional.cross_entropy(predictions, targets)
