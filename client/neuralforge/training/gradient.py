"""How the gradient of one step comes about: the seam between the loop and what it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.engine import Engine
from neuralforge.training.flat import FlatParameters
from neuralforge.training.source import BatchSource


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGradient:
    """What the making of a gradient came to: mean loss in nats a token, None where there was no example; tokens read.

    `usable` is False where fp16 overflowed and the step must be skipped.
    """

    loss: float | None
    tokens: int
    usable: bool = True


class GradientSource(Protocol):
    """Fills the flat gradient, step after step."""

    @property
    def examples(self) -> Sequence[TokenizedExample]:
        """Everything that may be learnt from; no two share an index."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every new example once, or are expected to."""
        ...

    def __call__(self, step: int) -> StepGradient:
        """Put the gradient of this step into the flat gradient, whatever was there before."""
        ...

    def digest(self) -> str:
        """What tells this source from another, so that a checkpoint is not resumed with other data."""
        ...


class GradientMaker(Protocol):
    """Makes the source of a run's gradients, once the run's examples and numbers are known."""

    def __call__(
        self,
        engine: Engine,
        flat: FlatParameters,
        *,
        examples: Sequence[TokenizedExample],
        batch_size: int,
        trainable: torch.Tensor | None,
    ) -> GradientSource:
        """A source whose new examples are these; at most `batch_size` of them go through the model at once."""
        ...


class BatchGradient:
    """The gradient of the mean loss over the target tokens of a step's batches."""

    def __init__(self, engine: Engine, flat: FlatParameters, source: BatchSource, *, seed: int) -> None:
        self._engine = engine
        self._flat = flat
        self._source = source
        self._seed = seed

    @property
    def examples(self) -> Sequence[TokenizedExample]:
        """Those of the batches' source."""
        return self._source.examples

    @property
    def steps_per_epoch(self) -> int:
        """That of the batches' source."""
        return self._source.steps_per_epoch

    def __call__(self, step: int) -> StepGradient:
        """Accumulate over the step's batches."""
        batches = self._source.batches(step)
        targets = sum(batch.targets for batch in batches)
        self._flat.gradient.zero_()
        loss = 0.0
        for i, batch in enumerate(batches):
            # Scaled by all tokens of the step: accumulated micro-batches equal one large batch exactly.
            seed = (self._seed * 1_000_003 + step) * 4096 + i
            loss += self._engine.accumulate(batch, scale=1 / targets, seed=seed)
        return StepGradient(
            loss=loss / targets, tokens=sum(batch.tokens for batch in batches), usable=self._engine.unscale()
        )

    def digest(self) -> str:
        """That of the batches' source."""
        return self._source.digest()
