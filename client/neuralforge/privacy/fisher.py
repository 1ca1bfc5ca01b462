"""What mattered to a private session, told from its noised gradients alone: nothing more is spent on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from neuralforge.continual.fisher import Fisher
from neuralforge.continual.order import layout_of, to_layout
from neuralforge_common.errors import PrivacyError
from neuralforge_common.privacy import PrivacyTerms

if TYPE_CHECKING:
    from neuralforge.privacy.step import PrivateGradient
    from neuralforge.training.flat import FlatParameters
    from neuralforge.training.trainer import LoRATrainer


def private_fisher(trainer: LoRATrainer, noised: PrivateGradient | None, terms: PrivacyTerms) -> Fisher:
    """The Fisher information of a private session, around the adapter as it stands: both are post-processing.

    A noised gradient is g + N(0, (σC/L)²), so its second moment over the steps less that variance is the second moment
    of g, the clipped sum over L. For a single value it drowns: the estimate is off by √(2 / steps) of the variance, and
    g² is a hundredth of it. Of a matrix it does not, so every value of a matrix is given the mean over it, zero where
    that is below zero.

    Raises:
        PrivacyError: no step was taken.
    """
    if noised is None or noised.squares is None or noised.steps == 0:
        raise PrivacyError("no private step was taken: there is nothing to tell what mattered")
    variance = (terms.noise_multiplier * terms.max_grad_norm / terms.divisor) ** 2
    moments = noised.squares.to("cpu", torch.float64) / noised.steps
    return Fisher(
        spec=trainer.spec,
        layout=layout_of(trainer.flat),
        values=to_layout(trainer.flat, _pooled(trainer.flat, moments, variance)),
        anchor=to_layout(trainer.flat, trainer.flat.vector),
        examples=0,
    )


def _pooled(flat: FlatParameters, moments: torch.Tensor, variance: float) -> torch.Tensor:
    pooled = torch.zeros_like(moments)
    for place in flat.places.values():
        mean = float(place.of(moments).mean())
        # A matrix that is not trained has no noise either, and no moment.
        place.of(pooled).fill_(max(0.0, mean - variance) if mean else 0.0)
    return pooled
