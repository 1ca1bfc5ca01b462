"""What the methods share that average products B·A and not A and B: the clients' factors side by side, per module.

Σ wᵢ·Bᵢ·Aᵢ is [w₁B₁ | w₂B₂ | …] · [A₁; A₂; …]: averages of products are stacks of factors. Bᵢ = B + ΔBᵢ and
Aᵢ = A + ΔAᵢ, so a client of a lower rank has the federation's own components beyond its rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.low_rank import product_norm
from neuralforge_server.aggregation.exact_sum import DoubleArray
from neuralforge_server.aggregation.exactness import relative
from neuralforge_server.aggregation.kept import Kept
from neuralforge_server.aggregation.method import Aggregate, GlobalState, Update
from neuralforge_server.aggregation.robust import clip_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """A round's deltas (layout.size,) in the order of their clients, and their shares, which add up to 1."""

    state: GlobalState
    deltas: tuple[FloatArray, ...]
    shares: tuple[float, ...]
    clipped: int

    def mean(self) -> DoubleArray:
        """The mean delta (layout.size,)."""
        mean = np.zeros(self.state.layout.size)
        for share, delta in zip(self.shares, self.deltas, strict=True):
            mean += np.float64(share) * delta  # a plain float would leave the product in float32
        return mean

    def stacks(self, *, around: DoubleArray | None = None) -> Iterator[tuple[DoubleArray, DoubleArray]]:
        """Every module's [… wᵢBᵢ …] (d_out, n·r) and […; Aᵢ; …] (n·r, d_in).

        With `around`, a mean delta, the factors are ΔBᵢ − mean ΔB and ΔAᵢ − mean ΔA: the covariance.
        """
        layout = self.state.layout
        offset = self.state.vector.astype(np.float64) if around is None else -around
        each = [layout.factors(delta) for delta in self.deltas]
        for _, a_offset, b_offset in layout.factors(offset):
            factors = [next(client) for client in each]
            left = [share * (b_offset + b) for share, (_, _, b) in zip(self.shares, factors, strict=True)]
            yield np.hstack(left), np.vstack([a_offset + a for _, a, _ in factors])


class ProductFold:
    """Keeps a round's updates, clips them to their median norm where `clip` says so, and hands them on together."""

    def __init__(self, state: GlobalState, finish: Callable[[Cohort], Aggregate], *, clip: bool) -> None:
        self._state = state
        self._finish = finish
        self._clip = clip
        self._kept = Kept(state.layout, "both")

    def add(self, update: Update) -> None:
        """Keep it."""
        self._kept.add(update)

    def finish(self) -> Aggregate:
        """What the method makes of the cohort."""
        deltas, weights = self._kept.in_order()
        clipped = 0
        if self._clip:
            factors = clip_factors(deltas)
            clipped = sum(factor < 1 for factor in factors)
            deltas = [np.float32(f) * delta if f < 1 else delta for f, delta in zip(factors, deltas, strict=True)]
        total = sum(weights)
        shares = tuple(weight / total for weight in weights)
        return self._finish(Cohort(state=self._state, deltas=tuple(deltas), shares=shares, clipped=clipped))


@dataclass(slots=True)
class ErrorMeter:
    """Adds up ‖served − wanted‖² and ‖wanted‖² over modules, both sides given as factors."""

    squares: float = 0.0
    whole: float = 0.0

    def add(
        self, wanted: tuple[DoubleArray, DoubleArray], served: tuple[DoubleArray | FloatArray, DoubleArray | FloatArray]
    ) -> None:
        """One module: left (d_out, k) and right (k, d_in) of what should be served, and of what is."""
        left = np.hstack([wanted[0], -served[0].astype(np.float64)])
        right = np.vstack([wanted[1], served[1].astype(np.float64)])
        self.squares += product_norm(left, right) ** 2
        self.whole += product_norm(*wanted) ** 2

    def error(self) -> float | None:
        """‖served − wanted‖ / ‖wanted‖."""
        return relative(math.sqrt(self.squares), math.sqrt(self.whole))


def frozen_factors(state: GlobalState) -> Iterator[tuple[DoubleArray, DoubleArray]]:
    """Every module's frozen B (d_out, q) and A (q, d_in) in float64; of rank 0 where nothing is frozen yet."""
    if state.frozen is None or not state.frozen_rank:
        for module in state.layout.modules:
            yield np.zeros((module.d_out, 0)), np.zeros((0, module.d_in))
        return
    for _, a, b in state.layout.with_rank(state.frozen_rank).factors(state.frozen):
        yield b.astype(np.float64), a.astype(np.float64)


def empty_frozen(layout: AdapterLayout, rank: int) -> FloatArray:
    """Frozen components that add nothing."""
    return np.zeros(layout.with_rank(rank).size, np.float32)
