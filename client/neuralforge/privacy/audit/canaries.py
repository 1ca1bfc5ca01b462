"""The unit that an attacker would choose, in a crowd that an attacker would choose as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.engine import Engine

OTHERS = 6
LOUDNESS = 100.0
"""Norm of the canary's gradient before it is clipped, as a multiple of C."""

Unit = tuple[TokenizedExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Everybody else, a unit of one example each, and the canary, a unit of several."""

    others: tuple[Unit, ...]
    canary: Unit

    @property
    def everybody(self) -> tuple[Unit, ...]:
        """The canary comes last."""
        return (*self.others, self.canary)


def adversarial_crowd(*, vocabulary: int, max_length: int, seq2seq: bool) -> Crowd:
    """Others with one short text, so that their gradients add up, and a canary with as many targets as go in.

    Where a mean is taken over all tokens of a batch, it is the canary's, and the others' gradients all but vanish.
    Where each example is clipped by itself, the canary counts as often as it has examples.
    """
    generator = np.random.default_rng()

    def example(index: int, context: int, targets: int) -> TokenizedExample:
        ids = generator.integers(1, vocabulary, size=context + targets).tolist()
        before, after = tuple(ids[:context]), tuple(ids[context:])
        if seq2seq:
            return TokenizedExample(index=index, tokens=after, start=0, context=before)
        return TokenizedExample(index=index, tokens=before + after, start=context)

    short = example(0, 3, 2)
    return Crowd(
        others=tuple((replace(short, index=index),) for index in range(OTHERS)),
        canary=(example(OTHERS, 1, max_length - 1), example(OTHERS + 1, 2, 1), example(OTHERS + 2, 4, 3)),
    )


class Staged:
    """An engine in which the canary has a gradient of our choice, and all others one that is `quieter` by a factor.

    Its examples go through the model like any other: what their presence does to the others' rows is left as it is.
    """

    def __init__(self, engine: Engine, *, canary: Unit, gradient: torch.Tensor, quieter: float) -> None:
        self._engine = engine
        self._canary = {example.index for example in canary}
        self._gradient = gradient
        self._quieter = quieter

    def accumulate_each(
        self,
        batch: Batch,
        rows: torch.Tensor,
        *,
        owners: Sequence[int],
        scales: Sequence[float],
        sides: str = "AB",
        seed: int,
    ) -> list[float]:
        """As the engine, but the mean loss a token of each of the canary's examples has the chosen gradient."""
        fresh = torch.zeros_like(rows)
        losses = self._engine.accumulate_each(batch, fresh, owners=owners, scales=scales, sides=sides, seed=seed)
        fresh.mul_(self._quieter)
        places = [i for i, example in enumerate(batch.examples) if example.index in self._canary]
        fresh[[owners[i] for i in places]] = 0.0
        for i in places:
            fresh[owners[i]].add_(self._gradient, alpha=scales[i] * batch.examples[i].targets)
        rows.add_(fresh)
        return losses


class Remembering:
    """An engine that is asked once for each batch and answers again from memory: the weights do not change.

    Exact without dropout. The key is the whole call, so what one example does to another's row is remembered with it.
    """

    def __init__(self, engine: Staged | Engine) -> None:
        self._engine = engine
        self._known: dict[object, tuple[torch.Tensor, list[float]]] = {}

    def accumulate_each(
        self,
        batch: Batch,
        rows: torch.Tensor,
        *,
        owners: Sequence[int],
        scales: Sequence[float],
        sides: str = "AB",
        seed: int,
    ) -> list[float]:
        """As the engine."""
        key = (batch.examples, tuple(owners), tuple(scales), sides)
        if key not in self._known:
            fresh = torch.zeros_like(rows)
            losses = self._engine.accumulate_each(batch, fresh, owners=owners, scales=scales, sides=sides, seed=seed)
            self._known[key] = fresh, losses
        found, losses = self._known[key]
        rows.add_(found)
        return losses
