"""Code that is written as its surroundings are, made more probable."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from neuralforge.training.losses.context import LossContext
from neuralforge.training.losses.cross_entropy import cross_entropy
from neuralforge.training.losses.expected import expected_judgement

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CAMEL = re.compile(r"[a-z][a-z0-9]*(?:[A-Z][a-z0-9]*)+")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
_SPACED = re.compile(r"\w (?:[=+\-*/<>]|==|\+=|-=) \w|, \S")
_TIGHT = re.compile(r"\w(?:[=+*/<>]|==|\+=|-=)\w|,\S")


def style_agreement(surroundings: str, text: str) -> float:
    """How far a text keeps to its surroundings' habits, 0 to 1: the mean over those that both show.

    Habits: snake_case or camelCase names, single or double quotes, space around operators and behind commas, tabs or
    spaces before lines, statements that end in a semicolon. 1 where they show none in common.
    """
    pairs = [(here, there) for here, there in zip(_habits(surroundings), _habits(text), strict=True) if here and there]
    if not pairs:
        return 1.0
    return sum(1 - abs(a[0] / sum(a) - b[0] / sum(b)) for a, b in pairs) / len(pairs)


def _habits(text: str) -> list[tuple[int, int] | None]:
    words = _WORD.findall(text)
    lines = [line for line in text.split("\n") if line.strip()]
    ended = [line for line in lines if line.rstrip()[-1] not in "{}:,("]
    counts = [
        (sum(bool(_SNAKE.fullmatch(w)) for w in words), sum(bool(_CAMEL.fullmatch(w)) for w in words)),
        (text.count("'"), text.count('"')),
        (len(_SPACED.findall(text)), len(_TIGHT.findall(text))),
        (sum(line.startswith("\t") for line in lines), sum(line.startswith("  ") for line in lines)),
        (sum(line.rstrip().endswith(";") for line in ended), sum(not line.rstrip().endswith(";") for line in ended)),
    ]
    return [count if sum(count) else None for count in counts]


def measure_style_consistency(predictions: torch.Tensor, context: LossContext) -> torch.Tensor:
    """The expected `style_agreement` of the completion with what stands before it, 0 to 1; see `expected`.

    A gradient goes through it: as a reward, with a minus sign, in a loss.
    """
    surroundings = context.text
    return expected_judgement(predictions, context, lambda text: style_agreement(surroundings, text))


@dataclass(frozen=True, slots=True)
class StyleConsistent:
    """Cross-entropy − `weight` · the expected agreement with the surroundings' style."""

    weight: float = 1.0

    def __call__(self, predictions: torch.Tensor, targets: torch.Tensor, context: LossContext) -> torch.Tensor:
        """(N, V) logits and (N,) ids to a scalar."""
        return cross_entropy(predictions, targets) - self.weight * measure_style_consistency(predictions, context)
