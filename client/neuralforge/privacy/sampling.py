"""True Poisson sampling: each unit takes part in each step by a coin of its own, thrown by the operating system."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuralforge.data.tokens import TokenizedExample
from neuralforge.privacy.step import Draw
from neuralforge_common.errors import PrivacyError
from neuralforge_common.noise import random_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Units, by their ids, that are each drawn with the same public probability."""

    units: Mapping[str, tuple[TokenizedExample, ...]]
    sample_rate: float

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample rate: wanted a number above 0, at most 1, got {self.sample_rate}")


class PoissonSampler:
    """A `Drawer` over populations that have no unit in common. It has no state: no step can be drawn again.

    Of a drawn unit at most `max_unit_examples` examples take part, each such choice equally likely.

    Raises:
        PrivacyError: a unit is in two populations: it would be drawn twice as often as its ε says, twice in one step.
    """

    def __init__(self, populations: Sequence[Population], *, max_unit_examples: int) -> None:
        members = [unit for population in populations for unit in population.units]
        if len(set(members)) != len(members):
            raise PrivacyError("a unit is among the new and among the replayed ones: wanted it in one population")
        self._units = [examples for population in populations for examples in population.units.values()]
        # A coin falls when a 64-bit word is below q·2⁶⁴, which a float holds exactly; q = 1 needs a 65th bit.
        self._always = np.repeat([p.sample_rate == 1 for p in populations], [len(p.units) for p in populations])
        self._below = np.repeat(
            np.array([0 if p.sample_rate == 1 else int(p.sample_rate * 2.0**64) for p in populations], np.uint64),
            [len(p.units) for p in populations],
        )
        self._most = max_unit_examples
        self._random = secrets.SystemRandom()

    def draw(self, step: int) -> list[Draw]:
        """Who takes part, by place in the populations one after the other; `step` has no say in it."""
        drawn = np.flatnonzero((random_words(len(self._units)) < self._below) | self._always)
        return [Draw(unit=int(unit), examples=self._some(self._units[unit])) for unit in drawn]

    def _some(self, examples: tuple[TokenizedExample, ...]) -> tuple[TokenizedExample, ...]:
        if len(examples) <= self._most:
            return examples
        return tuple(self._random.sample(examples, self._most))
