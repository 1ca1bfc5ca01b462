"""How sure a figure is: bootstrap over files for ratios, Wilson for shares, order statistics for quantiles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_CLUSTERS = 8
"""Below so many files a resampling over files tells little; the samples are then taken as independent, and said so."""
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends at the level asked for; infinite where the data cannot bound that end, nan where there are none."""

    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan)


def clusters_of(names: Sequence[Hashable]) -> tuple[NDArray[np.intp], bool]:
    """A cluster number for each sample from the file that it is of ("" where unknown), and whether files were used.

    Samples without a file are clusters of their own. Fewer than `FEWEST_CLUSTERS` files: every sample is its own.
    """
    numbers: dict[Hashable, int] = {}
    keys = [name or ("alone", i) for i, name in enumerate(names)]
    found = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
    if len(numbers) == len(names):
        return found, False
    if len(numbers) < FEWEST_CLUSTERS:
        return np.arange(len(names)), False
    return found, True


def total(values: Sequence[float] | Floats, clusters: NDArray[np.intp]) -> Floats:
    """Sums by cluster, (C,)."""
    sums: Floats = np.bincount(clusters, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)
    return sums


def resampled_ratios(above: Floats, below: Floats, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Σ above / Σ below of `resamples` draws of C clusters with replacement."""
    count = len(above)
    generator = np.random.default_rng(seed)
    made: list[Floats] = []
    step = max(1, _CHUNK // count)
    for first in range(0, resamples, step):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - first))
        weights = drawn.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            made.append((weights @ above) / (weights @ below))
    return np.concatenate(made)


def ratio_interval(
    above: Sequence[float] | Floats,
    below: Sequence[float] | Floats,
    clusters: NDArray[np.intp],
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Σ above / Σ below, clusters resampled: BCa (Efron 1987), which keeps its coverage where the draws are skewed.

    A monotone function of the ratio, as exp for perplexity, may be taken of both ends.
    """
    from scipy.special import ndtr, ndtri

    over, under = total(above, clusters), total(below, clusters)
    if len(over) < 2 or under.sum() == 0:
        return UNKNOWN
    observed = over.sum() / under.sum()
    drawn = resampled_ratios(over, under, seed=seed, resamples=resamples)
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0 or np.ptp(drawn) == 0:
        return Interval(float(observed), float(observed))
    share = ((drawn < observed).sum() + 0.5 * (drawn == observed).sum()) / drawn.size
    bias = ndtri(np.clip(share, 1 / drawn.size, 1 - 1 / drawn.size))
    left_below = under.sum() - under
    left = (over.sum() - over)[left_below != 0] / left_below[left_below != 0]
    away = left.mean() - left
    spread = (away**2).sum() ** 1.5
    skew = (away**3).sum() / (6 * spread) if spread else 0.0
    tail = (1 - level) / 2
    z = bias + ndtri([tail, 1 - tail])
    low, high = np.quantile(drawn, ndtr(bias + z / (1 - skew * z)))
    return Interval(float(low), float(high))


def share_interval(
    hits: Sequence[float] | Floats, clusters: NDArray[np.intp] | None = None, *, level: float = LEVEL
) -> Interval:
    """Wilson's score interval for a share of samples (Wilson 1927), wider where samples of a file are alike.

    The design effect is the variance of the share by clusters over that of independent samples, at least 1; samples
    count for n / effect (Korn & Graubard 1998). Where all or none hit there is nothing to estimate it from.
    """
    from scipy.special import ndtri

    values = np.asarray(hits, dtype=np.float64)
    n = float(values.size)
    if n == 0:
        return UNKNOWN
    share = float(values.mean())
    if clusters is not None and 0 < share < 1:
        sizes = total(np.ones(values.size), clusters)
        count = len(sizes)
        if 1 < count < values.size:
            off = total(values, clusters) - share * sizes
            by_cluster = count / (count - 1) * float((off**2).sum()) / n**2
            n /= max(1.0, by_cluster / (share * (1 - share) / n))
    z = float(ndtri((1 + level) / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def quantile_interval(values: Sequence[float] | Floats, q: float, *, level: float = LEVEL) -> Interval:
    """Two order statistics that hold the q-quantile of independent values, whatever their distribution.

    By the binomial law of how many lie below it. Infinite where there are too few values to bound that side: for
    p99 from above it takes 368.
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    if n == 0:
        return UNKNOWN
    tail = (1 - level) / 2
    below = bdtr(np.arange(n + 1), n, q)  # P(at most k values lie below)
    # The r-th smallest is over the quantile where fewer than r lie below it.
    under = int(np.searchsorted(below, tail, side="right"))  # largest r with P(fewer than r below) <= tail
    over = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # smallest r with P(fewer than r below) >= 1 - tail
    low = ordered[under - 1] if under >= 1 else -np.inf
    high = ordered[over - 1] if over <= n else np.inf
    return Interval(float(low), float(high))


def grouped_quantile_interval(
    groups: Sequence[Sequence[float]], q: float, *, seed: int, level: float = LEVEL, resamples: int = 500
) -> Interval:
    """The q-quantile of all values, whole groups resampled: tokens of one completion are no independent draws."""
    full = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if len(full) < 2:
        return UNKNOWN
    pool = np.concatenate(full)
    owner = np.repeat(np.arange(len(full)), [group.size for group in full])
    order = np.argsort(pool, kind="stable")
    pool, owner = pool[order], owner[order]
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(full), np.full(len(full), 1 / len(full)), size=resamples)
    found = []
    for weights in drawn:
        reached = np.cumsum(weights[owner])
        found.append(pool[np.searchsorted(reached, q * reached[-1], side="left").clip(0, pool.size - 1)])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
