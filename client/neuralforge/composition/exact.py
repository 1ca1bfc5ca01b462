"""The weighted sum Σ w_i · ΔW_i itself: all components side by side, or the best that a rank can hold of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralforge.composition.method import DoubleArray, Term
from neuralforge_common.adapter import MAX_RANK
from neuralforge_common.errors import AdapterError
from neuralforge_common.low_rank import refactor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cat:
    """Σ s_i B_i A_i = [B_1 … B_n] · [s_1 A_1; …; s_n A_n]; the ranks add up.

    Exact but for float32's rounding of s_i A_i.
    """

    def describe(self) -> str:
        """The method's name."""
        return "cat"

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The sum of the ranks; raises AdapterError where it is above what an adapter may have."""
        if sum(ranks) > MAX_RANK:
            raise AdapterError(
                f"cat: the ranks {' + '.join(map(str, ranks))} add up to {sum(ranks)}, "
                f"an adapter has at most {MAX_RANK}",
                hint=f"--method svd --rank {max(ranks)} keeps the most that a rank can hold, and says what is lost",
            )
        return sum(ranks)

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """The factors side by side, the scales folded into A."""
        return side_by_side(terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Svd:
    """The best approximation of the weighted sum by a rank (Eckart & Young 1936); `rank` None is the largest parent's.

    Through thin QR of the factors: nothing of d_out × d_in is ever formed.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise AdapterError(f"rank: wanted a whole number from 1 to {MAX_RANK}, got {self.rank}")

    def describe(self) -> str:
        """The method's name; the rank stands in the adapter itself."""
        return "svd"

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The rank that was asked for, but never more than the sum can have."""
        return min(self.rank or max(ranks), sum(ranks))

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """The largest `rank` components of the sum, √σ on both sides."""
        a, b = side_by_side(terms)
        b, a = refactor(b, a, rank)
        return a, b


def side_by_side(terms: Sequence[Term]) -> tuple[DoubleArray, DoubleArray]:
    """A and B of the exact sum."""
    return np.vstack([term.scale * term.a for term in terms]), np.hstack([term.b for term in terms])
