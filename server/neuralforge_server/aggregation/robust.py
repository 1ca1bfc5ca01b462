"""Rules that bound what any single client can do to a round, at the price of the mean's efficiency.

Each takes the updates of a round in the order of their clients, rows of equal length, and gives one. Except for
clipping they give every client one voice: a weight is what the client says of itself, and a client that lies about it
would be as good as many. Values are taken in blocks, so that no second copy of all updates is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_server.aggregation.exact_sum import DoubleArray
from neuralforge_server.aggregation.exactness import norm_of

RuleName: TypeAlias = Literal["none", "clip", "median", "trimmed-mean", "multi-krum", "geometric-median"]
Outcome: TypeAlias = tuple[DoubleArray, Mapping[str, float]]
Rule: TypeAlias = Callable[[Sequence[FloatArray], Sequence[int]], Outcome]
"""Rows (P,) and weights → the robust centre (P,), and figures for the round's record."""

_BLOCK = 2**14
_ROUNDS = 100


def clip_factors(rows: Sequence[FloatArray], bound: float | None = None) -> list[float]:
    """min(1, bound / ‖row‖) for each row; without a bound, the median norm of the round (McMahan et al. 2018, §3)."""
    norms = [norm_of(row) for row in rows]
    limit = float(np.median(norms)) if bound is None else bound
    return [min(1.0, limit / norm) if norm > 0 else 1.0 for norm in norms]


def clipped_mean(rows: Sequence[FloatArray], weights: Sequence[int], *, bound: float | None = None) -> Outcome:
    """The weighted mean of rows cut to one length (Sun et al. 2019, "Can You Really Backdoor Federated Learning?")."""
    factors = clip_factors(rows, bound)
    total = sum(weights)
    shares = [weight * factor / total for weight, factor in zip(weights, factors, strict=True)]
    return _combined(rows, shares), {"clipped": float(sum(factor < 1 for factor in factors))}


def coordinate_median(rows: Sequence[FloatArray], weights: Sequence[int]) -> Outcome:
    """The median of every coordinate (Yin et al. 2018): fewer than half the clients cannot leave the honest range."""
    centre = np.empty(rows[0].size)
    for where, block in _blocks(rows):
        centre[where] = np.median(block, axis=0)
    return centre, {}


def trimmed_mean(rows: Sequence[FloatArray], weights: Sequence[int], *, trim: float) -> Outcome:
    """The mean of every coordinate without its ⌊trim·n⌋ smallest and largest values (Yin et al. 2018)."""
    cut = min(math.floor(trim * len(rows)), (len(rows) - 1) // 2)
    centre = np.empty(rows[0].size)
    for where, block in _blocks(rows):
        block.sort(axis=0)
        centre[where] = block[cut : len(rows) - cut].mean(axis=0, dtype=np.float64)
    return centre, {"trimmed": 2.0 * cut}


def multi_krum(rows: Sequence[FloatArray], weights: Sequence[int], *, byzantine: int) -> Outcome:
    """The mean of the n − f rows whose n − f − 2 nearest neighbours are nearest (Blanchard et al. 2017, §4 and §6).

    The guarantee needs n ≥ 2f + 3; a smaller round assumes as many liars as it can bear.
    """
    count = len(rows)
    liars = min(byzantine, max(0, (count - 3) // 2))
    squares = _squared_distances(_gram(rows))
    neighbours = max(0, count - liars - 2)
    np.fill_diagonal(squares, np.inf)  # nobody is a neighbour of their own
    scores = np.sort(squares, axis=1)[:, :neighbours].sum(axis=1)
    chosen = sorted(np.argsort(scores, kind="stable")[: count - liars].tolist())
    shares = [1.0 / len(chosen) if index in chosen else 0.0 for index in range(count)]
    return _combined(rows, shares), {"left_out": float(count - len(chosen))}


def geometric_median(rows: Sequence[FloatArray], weights: Sequence[int]) -> Outcome:
    """The point with the least sum of distances to all rows, by smoothed Weiszfeld (RFA: Pillutla et al. 2022).

    Every iterate is a mixture of the rows, so distances follow from their Gram matrix: the rows are read twice, however
    many iterations there are.
    """
    count = len(rows)
    gram = _gram(rows)
    shares = np.full(count, 1.0 / count)
    # A distance below this counts as this: the median may lie on a row (ν of the paper, here in the rows' own units).
    smallest = 1e-6 * math.sqrt(max(float(np.median(_squared_distances(gram))), 0.0)) or 1.0
    for _ in range(_ROUNDS):
        mixed = gram @ shares
        distances = np.sqrt(np.maximum(np.diag(gram) - 2 * mixed + shares @ mixed, 0.0))
        pull = 1.0 / np.maximum(distances, smallest)
        moved = pull / pull.sum()
        settled = float(np.abs(moved - shares).max()) < 1e-10
        shares = moved
        if settled:
            break
    return _combined(rows, shares.tolist()), {"least_share": float(shares.min())}


def _blocks(rows: Sequence[FloatArray]) -> Iterator[tuple[slice, FloatArray]]:
    """All rows over some columns at a time, as a copy (n, columns)."""
    for begin in range(0, rows[0].size, _BLOCK):
        where = slice(begin, begin + _BLOCK)
        yield where, np.stack([row[where] for row in rows])


def _combined(rows: Sequence[FloatArray], shares: Sequence[float]) -> DoubleArray:
    """Σ shareᵢ·rowᵢ, in the order of the rows."""
    total = np.zeros(rows[0].size)
    for row, share in zip(rows, shares, strict=True):
        if share:
            total += np.float64(share) * row
    return total


def _gram(rows: Sequence[FloatArray]) -> DoubleArray:
    """All scalar products (n, n) in float64."""
    gram = np.zeros((len(rows), len(rows)))
    for _, block in _blocks(rows):
        wide = block.astype(np.float64)
        gram += wide @ wide.T
    return gram


def _squared_distances(gram: DoubleArray) -> DoubleArray:
    squares = np.diag(gram)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
