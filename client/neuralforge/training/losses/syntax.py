"""Code that does not parse, made improbable."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralforge.data.example import Example
from neuralforge.evaluation.syntax import syntax_valid
from neuralforge.training.losses.context import LossContext, current_context
from neuralforge.training.losses.cross_entropy import cross_entropy
from neuralforge.training.losses.expected import expected_judgement


def check_syntax_errors(predictions: torch.Tensor) -> torch.Tensor:
    """How probable it is that one token makes the completion no longer parse: 0 to 1, see `expected`.

    Held to what the right completion does in the same place: a window that ends in an open block is no error. 0 for a
    language without a grammar. To be called in a loss. A gradient goes through it.
    """
    context = current_context()
    example = Example(context=context.text, completion=context.completion, language=context.language)

    def errs(text: str) -> float:
        return 1.0 if syntax_valid(example, text) is False else 0.0

    return expected_judgement(predictions, context, errs)


@dataclass(frozen=True, slots=True)
class SyntaxPenalised:
    """Cross-entropy + `weight` · the probability of a syntax error, see `check_syntax_errors`."""

    weight: float = 1.0

    def __call__(self, predictions: torch.Tensor, targets: torch.Tensor, context: LossContext) -> torch.Tensor:
        """(N, V) logits and (N,) ids to a scalar."""
        return cross_entropy(predictions, targets) + self.weight * check_syntax_errors(predictions)
