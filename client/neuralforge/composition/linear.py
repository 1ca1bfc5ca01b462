"""`linear` as PEFT defines it: the factors are added, not their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralforge.composition.method import DoubleArray, Term, one_rank, shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A = Σ ±√|s_i| A_i, B = Σ √|s_i| B_i.

    B·A is the weighted sum of the products and all cross terms ±√|s_i s_j| B_i A_j, which no adapter has learnt: cheap,
    and rough unless the adapters share a factor or began as one.
    """

    def describe(self) -> str:
        """The method's name."""
        return "linear"

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The rank that all have."""
        return one_rank("linear", ranks)

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """The sums of the factors."""
        of_a, of_b = shares(terms)
        a: DoubleArray = sum((w * term.a for w, term in zip(of_a, terms, strict=True)), start=0 * terms[0].a)
        b: DoubleArray = sum((w * term.b for w, term in zip(of_b, terms, strict=True)), start=0 * terms[0].b)
        return a, b
