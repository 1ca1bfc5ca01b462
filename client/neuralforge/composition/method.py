"""What every way to compose adapters is: a rule for one module's factors, applied to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from neuralforge_common.errors import AdapterError

DoubleArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """One adapter's share of a module: `scale` · B · A, scale being its weight times its own alpha / rank.

    A is (rank, d_in), B is (d_out, rank), both zero where the adapter leaves the module alone.
    """

    scale: float
    a: DoubleArray
    b: DoubleArray


class Method(Protocol):
    """A way to make one adapter of several; the result is applied as B·A, its alpha being its rank."""

    def describe(self) -> str:
        """The method's name and its options in words."""

    def rank_of(self, ranks: Sequence[int]) -> int:
        """The rank of the result for adapters of these ranks; raises AdapterError where there can be none."""

    def combine(self, module: str, terms: Sequence[Term], rank: int) -> tuple[DoubleArray, DoubleArray]:
        """A (rank, d_in) and B (d_out, rank) of the result for the module of this name."""


def one_rank(method: str, ranks: Sequence[int]) -> int:
    """The rank that all adapters have; raises AdapterError where they differ."""
    if len(set(ranks)) != 1:
        raise AdapterError(
            f"{method} adds A to A and B to B, which wants equal ranks; got {', '.join(map(str, ranks))}",
            hint="--method svd or cat takes any ranks",
        )
    return ranks[0]


def shares(terms: Sequence[Term]) -> tuple[DoubleArray, DoubleArray]:
    """What each A and each B is multiplied by: √|scale| on either side, the sign on A's alone."""
    scales = np.array([term.scale for term in terms])
    return np.sqrt(np.abs(scales)) * np.where(scales < 0, -1.0, 1.0), np.sqrt(np.abs(scales))
