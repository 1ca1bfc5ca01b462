"""DARE (Yu et al. 2024, arXiv 2311.03099): drop values at random, rescale the rest, add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralforge.composition.linear import Linear
from neuralforge.composition.method import DoubleArray, Term, one_rank
from neuralforge_common.errors import AdapterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dare:
    """Every value of A and of B is dropped with probability `drop_rate`, else divided by 1 − drop_rate; then `linear`.

    PEFT's `dare_linear`. Both factors are unbiased, and as they are drawn independently so is their product, of what
    `linear` makes: its cross terms stay. What is dropped depends on `seed`, the module's name and the adapter's place.
    """

    drop_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate < 1:
            raise AdapterError(f"drop rate: wanted a number from 0 to below 1, got {self.drop_rate}")

    def describe(self) -> str:
        """The method's name, drop rate and seed."""
        return f"dare, drop rate {self.drop_rate:g}, seed {self.seed}"

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The rank that all have."""
        return one_rank("dare", ranks)

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """Both factors thinned, and added."""
        thinned = [
            Term(
                scale=term.scale,
                a=self._thin(term.a, self.kept(module, place, "A", term.a.shape)),
                b=self._thin(term.b, self.kept(module, place, "B", term.b.shape)),
            )
            for place, term in enumerate(terms)
        ]
        return Linear().combine(module, thinned, rank)

    def kept(self, module: str, place: int, side: str, shape: tuple[int, ...]) -> DoubleArray:
        """1 where a value stays and 0 where it is dropped."""
        # By name, not by order: the same module loses the same values whatever else the adapters hold.
        entropy = [self.seed, place, ord(side), *module.encode()]
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        return (generator.random(shape) >= self.drop_rate).astype(np.float64)

    def _thin(self, matrix: DoubleArray, kept: DoubleArray) -> DoubleArray:
        return matrix * kept / (1 - self.drop_rate)
