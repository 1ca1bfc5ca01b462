"""TIES-Merging (Yadav et al. 2023, arXiv 2306.01708): trim, elect a sign, merge what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralforge.composition.method import DoubleArray, Term, one_rank, shares
from neuralforge_common.errors import AdapterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """On A and on B each, as PEFT applies the paper to LoRA; the product has cross terms as `linear`'s has.

    `density` is the share of values that trimming leaves of every matrix, above 0, at most 1.
    """

    density: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise AdapterError(f"density: wanted a number above 0, at most 1, got {self.density}")

    def describe(self) -> str:
        """The method's name and density."""
        return f"ties, density {self.density:g}"

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The rank that all have."""
        return one_rank("ties", ranks)

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """Both factors, merged each on its own."""
        of_a, of_b = shares(terms)
        return (
            merge_agreeing(np.stack([trim(term.a, self.density) for term in terms]), of_a),
            merge_agreeing(np.stack([trim(term.b, self.density) for term in terms]), of_b),
        )


def trim(matrix: DoubleArray, density: float) -> DoubleArray:
    """The matrix with only its ⌊density · size⌋ largest magnitudes; of equal ones the first stay."""
    flat = matrix.reshape(-1)
    kept = int(density * flat.size)
    order = np.argsort(-np.abs(flat), kind="stable")
    trimmed = np.zeros_like(flat)
    trimmed[order[:kept]] = flat[order[:kept]]
    return trimmed.reshape(matrix.shape)


def merge_agreeing(stack: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """Where the sign of Σ_i stack_i is elected, the mean of weight_i · stack_i over the i that have that sign.

    The election is of the unweighted values, and falls to plus where they cancel, as in PEFT.
    """
    elected = np.where(stack.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(stack) == elected
    weighted = stack * weights.reshape(-1, *([1] * (stack.ndim - 1)))
    merged: DoubleArray = (weighted * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
    return merged
