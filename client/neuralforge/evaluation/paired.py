"""Whether two adapters differ on the same samples: exact McNemar, sign flips, the paired bootstrap, and power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuralforge.evaluation.intervals import LEVEL, Floats, Interval, ratio_interval, resampled_ratios, total

POWER = 0.8
EXACT_UP_TO = 14
FLIPS = 9999
MOST_SAMPLES = 10_000_000
"""More than so many samples are no advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A minus B, a sample; `p` of no difference, `error` its standard error, `samples` the pairs behind it."""

    value: float
    interval: Interval
    p: float
    error: float
    samples: int


def paired_difference(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    below: Sequence[float] | Floats,
    clusters: NDArray[np.intp],
    *,
    seed: int,
) -> Difference:
    """Σ (a - b) / Σ below, whole clusters drawn.

    `p` is the larger of two: of the paired bootstrap, and of flipping the signs of whole clusters, which is exact
    however few they are where the differences are symmetric under no difference (Fisher 1935; the bootstrap alone
    finds too much in a handful). Five clusters or fewer can never be below 0.05.
    """
    apart = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    over, under = total(apart, clusters), total(below, clusters)
    value = float(over.sum() / under.sum())
    count = len(over)
    residual = over - value * under
    error = math.sqrt(count / (count - 1) * float((residual**2).sum())) / float(under.sum()) if count > 1 else math.nan
    drawn = resampled_ratios(over, under, seed=seed)
    sides = min((drawn <= 0).sum(), (drawn >= 0).sum())
    bootstrap = min(1.0, 2 * (1 + float(sides)) / (1 + drawn.size))
    return Difference(
        value=value,
        interval=ratio_interval(apart, below, clusters, seed=seed),
        p=max(bootstrap, sign_flip(over, seed=seed)),
        error=error,
        samples=len(apart),
    )


def sign_flip(differences: Floats, *, seed: int) -> float:
    """Two-sided p of Σ d under random signs: all of them up to `EXACT_UP_TO` values, else `FLIPS` drawn ones."""
    values = differences[differences != 0]
    if values.size == 0:
        return 1.0
    observed = abs(values.sum()) * (1 - 1e-12)  # what is equal but for rounding counts as equal
    if values.size <= EXACT_UP_TO:
        codes = np.arange(2**values.size)[:, None] >> np.arange(values.size) & 1
        return float((np.abs((1 - 2 * codes) @ values) >= observed).mean())
    generator = np.random.default_rng(seed)
    reached = 0
    left = FLIPS
    while left:
        rows = min(left, max(1, 4_000_000 // values.size))
        signs = 1 - 2 * generator.integers(0, 2, size=(rows, values.size), dtype=np.int8)
        reached += int((np.abs(signs @ values) >= observed).sum())
        left -= rows
    return (1 + reached) / (1 + FLIPS)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: of the samples that one alone got right, half should be A's."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def hits_interval(only_a: int, only_b: int, samples: int, *, level: float = LEVEL) -> Interval:
    """Of the difference of two paired shares (Agresti & Min 2005): half a sample is added to each of the four cells.

    It keeps a width where not one sample tells the two apart.
    """
    from scipy.special import ndtri

    count, apart = samples + 2, only_a - only_b
    half = float(ndtri((1 + level) / 2)) * math.sqrt(only_a + only_b + 1 - apart**2 / count) / count
    return Interval(max(-1.0, apart / count - half), min(1.0, apart / count + half))


def beyond(differences: Floats, *, margin: float, seed: int) -> float:
    """P of the mean being no further from 0 than `margin`: differences are drawn in by it, then signs are flipped."""
    mean = float(differences.mean())
    if abs(mean) <= margin:
        return 1.0
    return sign_flip(differences - math.copysign(margin, mean), seed=seed)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p: below α exactly where Holm's step-down procedure (1979) rejects at family-wise error α."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [0.0] * len(p)
    highest = 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[i]))
        adjusted[i] = highest
    return adjusted


def samples_needed(difference: Difference, *, alpha: float, power: float = POWER) -> int | None:
    """Samples after which the observed difference would be found with probability `power`; None where there is none.

    n · ((z(1 - α/2) + z(power)) · error / |difference|)²: the standard error falls as 1/√n.
    """
    from scipy.special import ndtri

    if difference.value == 0 or not math.isfinite(difference.error):
        return None
    z = float(ndtri(1 - alpha / 2) + ndtri(power))
    return _bounded(difference.samples * (z * difference.error / difference.value) ** 2)


def mcnemar_samples_needed(only_a: int, only_b: int, samples: int, *, alpha: float, power: float = POWER) -> int | None:
    """The same for McNemar's test (Connor 1987).

    (z(1 - α/2) · √p + z(power) · √(p - d²))² / d², where p is the share of samples that one alone got right and d the
    difference of the two shares.
    """
    from scipy.special import ndtri

    if only_a == only_b:
        return None
    discordant, apart = (only_a + only_b) / samples, abs(only_a - only_b) / samples
    first = float(ndtri(1 - alpha / 2)) * math.sqrt(discordant)
    second = float(ndtri(power)) * math.sqrt(max(0.0, discordant - apart**2))
    return _bounded(((first + second) / apart) ** 2)


def _bounded(samples: float) -> int | None:
    return math.ceil(samples) if samples <= MOST_SAMPLES else None
