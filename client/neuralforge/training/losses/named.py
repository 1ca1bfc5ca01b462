"""Losses by the names that a configuration knows them by."""

from __future__ import annotations

from typing import Literal

from neuralforge.training.losses.context import Loss
from neuralforge.training.losses.label_smoothing import LabelSmoothing
from neuralforge.training.losses.style import StyleConsistent
from neuralforge.training.losses.syntax import SyntaxPenalised

LossName = Literal["cross_entropy", "label_smoothing", "syntax_penalised", "style_consistent"]


def named_loss(name: LossName, *, label_smoothing: float = 0.1, weight: float = 1.0) -> Loss | None:
    """The loss of that name; None for the cross-entropy that is built into the engines."""
    if name == "label_smoothing":
        return LabelSmoothing(label_smoothing)
    if name == "syntax_penalised":
        return SyntaxPenalised(weight)
    return StyleConsistent(weight) if name == "style_consistent" else None
