"""Steps that are broken on purpose, each as a known system is or was: an audit that does not flag them says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from neuralforge.data.batch import Batch
from neuralforge.privacy.audit.parts import StepParts
from neuralforge.privacy.sampling import Population
from neuralforge.privacy.step import Draw, Drawer
from neuralforge.training.engine import Engine

NO_BOUND = 1e6


def without_noise(parts: StepParts) -> StepParts:
    """The sum as it is."""
    return replace(parts, noise=lambda size: np.zeros(size))


def half_the_noise(parts: StepParts) -> StepParts:
    """As where σ is taken for the noise's deviation though the divisor or C came in between."""
    return _with_noise(parts, parts.mechanism.noise_multiplier / 2)


def seeded_noise(parts: StepParts) -> StepParts:
    """As from a generator that somebody has seeded before each step."""
    return replace(parts, noise=lambda size: np.random.default_rng(0).standard_normal(size))


def without_clipping(parts: StepParts) -> StepParts:
    """All the noise, but a gradient of any size."""
    mechanism = parts.mechanism
    parts = replace(parts, mechanism=replace(mechanism, clip=mechanism.clip * NO_BOUND))
    return _with_noise(parts, mechanism.noise_multiplier / NO_BOUND)


def token_mean(parts: StepParts) -> StepParts:
    """The loss that Hugging Face's models return, times the batch's size: one long example makes the others quiet."""
    return replace(parts, engine=cast(Engine, _TokenMean(parts.engine)))


def clipped_by_example(parts: StepParts) -> StepParts:
    """Each example of a unit counts as a unit of its own."""
    return replace(parts, sampler=lambda population: _Torn(parts.sampler(population)))


def fixed_batches(parts: StepParts) -> StepParts:
    """Shuffled once, then dealt out in the same order each epoch."""
    return replace(parts, sampler=_Dealt)


def shuffled_batches(parts: StepParts) -> StepParts:
    """Shuffled anew each epoch: everybody takes part exactly once in it."""
    return replace(parts, sampler=lambda population: _Dealt(population, again=True))


CONTROLS: Mapping[str, Callable[[StepParts], StepParts]] = {
    "no noise": without_noise,
    "half the noise": half_the_noise,
    "the same noise again": seeded_noise,
    "no clipping": without_clipping,
    "clipped by example": clipped_by_example,
    "token-mean loss": token_mean,
    "fixed shuffled batches": fixed_batches,
    "batches shuffled each epoch": shuffled_batches,
}


def _with_noise(parts: StepParts, noise_multiplier: float) -> StepParts:
    return replace(parts, mechanism=replace(parts.mechanism, noise_multiplier=noise_multiplier))


class _TokenMean:
    """An engine whose loss is a mean over all the tokens of a batch, whatever it is told."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine

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
        same = [len(batch.examples) / batch.targets] * len(batch.examples)
        return self._engine.accumulate_each(batch, rows, owners=owners, scales=same, sides=sides, seed=seed)


class _Torn:
    """A drawer that takes units apart."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer

    def draw(self, step: int) -> list[Draw]:
        return [replace(draw, examples=(one,)) for draw in self._drawer.draw(step) for one in draw.examples]


class _Dealt:
    """A drawer that deals everybody out once an epoch of 1 / q steps."""

    def __init__(self, population: Population, *, again: bool = False) -> None:
        self._units = list(population.units.values())
        self._epoch = round(1 / population.sample_rate)
        self._again = again

    def draw(self, step: int) -> list[Draw]:
        epoch, place = divmod(step, self._epoch)
        order = np.random.default_rng(epoch if self._again else 0).permutation(len(self._units))
        return [Draw(unit=unit, examples=self._units[unit]) for unit in order[place :: self._epoch].tolist()]
