"""Label smoothing (Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralforge.training.losses.context import LossContext
from neuralforge_common.errors import TrainingError


@dataclass(frozen=True, slots=True)
class LabelSmoothing:
    """Cross-entropy against (1 − ε) · target + ε · uniform over the vocabulary.

    (1 − ε) · (−log p(target)) + ε · mean over v of −log p(v), in mean over the targets.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1:
            raise TrainingError(f"label smoothing: wanted a number from 0 to below 1, got {self.epsilon}")

    def __call__(
        self, predictions: torch.Tensor, targets: torch.Tensor, context: LossContext | None = None
    ) -> torch.Tensor:
        """(N, V) logits and (N,) ids to a scalar, in nats."""
        logs = torch.log_softmax(predictions, dim=-1)
        wanted = logs.gather(1, targets[:, None])[:, 0]
        return -((1 - self.epsilon) * wanted + self.epsilon * logs.mean(dim=-1)).mean()
