"""Perplexity and token accuracy of completions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuralforge.data.batch import evaluation_batches
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.engine import Engine, ExampleScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Teacher-forced scores over the code tokens of completions; the learnt end mark is left out.

    `loss` is the mean negative log-likelihood in nats a token, `accuracy` the share of tokens that were the most
    likely one.
    """

    loss: float
    accuracy: float
    tokens: int
    examples: int

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def summarize(scores: Iterable[ExampleScore]) -> Evaluation:
    """One figure from many examples, every token of equal weight."""
    scores = list(scores)
    tokens = sum(s.tokens for s in scores)
    if tokens == 0:
        return Evaluation(loss=math.nan, accuracy=math.nan, tokens=0, examples=len(scores))
    return Evaluation(
        loss=sum(s.loss for s in scores) / tokens,
        accuracy=sum(s.hits for s in scores) / tokens,
        tokens=tokens,
        examples=len(scores),
    )


def score_all(engine: Engine, examples: Sequence[TokenizedExample], *, batch_size: int = 8) -> list[ExampleScore]:
    """Scores of all examples, in the order of their index."""
    scores = [score for batch in evaluation_batches(examples, batch_size=batch_size) for score in engine.score(batch)]
    return sorted(scores, key=lambda s: s.index)
