"""From how often an attack is right to a lower bound on ε: no DP mechanism lets any test be better than that.

All bounds hold with probability `confidence` over the draws, whatever the mechanism is, save where it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
ToEpsilon = Callable[[float, float], float]
"""(rate of false positives, rate of true positives) -> the smallest ε that allows both."""

QUANTILES = np.linspace(0.05, 0.95, 24)
"""Of all scores: the thresholds that are tried. More find the same bound, and further out one wins by luck."""

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What an attack measured on independent draws without and with the canary."""

    without: Scores
    with_it: Scores


def threshold_bound(calibration: Scored, evaluation: Scored, *, confidence: float, to_epsilon: ToEpsilon) -> float:
    """The lower bound on ε of an attack that says "with" above a threshold.

    It is chosen on one set of draws and judged on another, by Clopper–Pearson intervals of both of its rates
    (Jagielski et al. 2020, §4; Nasr et al. 2021, §4.1).
    """
    pooled = np.concatenate([calibration.without, calibration.with_it])
    candidates = np.unique(np.quantile(pooled, QUANTILES))
    best = max(candidates, key=lambda threshold: _bound_at(threshold, calibration, confidence, to_epsilon))
    return _bound_at(best, evaluation, confidence, to_epsilon)


def highest_bound(draws: int, *, confidence: float, to_epsilon: ToEpsilon) -> float:
    """What `threshold_bound` would be had the attack never been wrong in `draws` of each kind: its power."""
    perfect = Scored(without=np.zeros(draws), with_it=np.ones(draws))
    return _bound_at(0.5, perfect, confidence, to_epsilon)


def _bound_at(threshold: float, scored: Scored, confidence: float, to_epsilon: ToEpsilon) -> float:
    miss = (1 - confidence) / 2
    false = _hits(scored.without, threshold)
    right = _hits(scored.with_it, threshold)
    return to_epsilon(
        highest_rate(false, scored.without.size, miss=miss), lowest_rate(right, scored.with_it.size, miss=miss)
    )


def _hits(scores: Scores, threshold: float) -> int:
    return int(np.count_nonzero(scores > threshold))


def any_mechanism(delta: float) -> ToEpsilon:
    """What (ε, δ)-DP says about any test (Kairouz, Oh & Viswanath 2015, Theorem 2.1): no assumption at all."""

    def epsilon(false: float, right: float) -> float:
        ratios = [(right - delta, false), (1 - false - delta, 1 - right)]
        return max(0.0, *(math.log(above / below) for above, below in ratios if above > 0 and below > 0))

    return epsilon


def gaussian_mechanism(delta: float, *, rate: float = 1.0) -> ToEpsilon:
    """The same where each draw is a Gaussian mechanism's: both rates give its μ, μ gives ε (Nasr et al. 2023, §4).

    Far sharper than `any_mechanism`, as a bound on μ is one on the whole curve (Dong, Roth & Su 2019, Corollary 1).
    With a `rate` it is ε of a step that takes the canary in with this probability.
    """

    def epsilon(false: float, right: float) -> float:
        mu = _NORMAL.inv_cdf(right) - _NORMAL.inv_cdf(false) if right > 0 and false < 1 else 0.0
        # Where the canary was not drawn nothing differs: δ(ε) is q times the Gaussian's at log(1 + (e^ε - 1) / q).
        return math.log1p(rate * math.expm1(gaussian_epsilon(mu, delta / rate))) if rate > 0 else 0.0

    return epsilon


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of one Gaussian mechanism whose sensitivity is μ standard deviations of its noise; 0 where μ ≤ 0."""
    low, high = 0.0, mu * mu / 2 + 40 * mu if mu > 0 and delta < 1 else 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        # δ(ε) of Dong, Roth & Su 2019, Corollary 1; the logarithm keeps e^ε finite.
        other = _below(-middle / mu - mu / 2)
        spent = _below(-middle / mu + mu / 2) - (math.exp(middle + math.log(other)) if other > 0 else 0.0)
        low, high = (middle, high) if spent > delta else (low, middle)
    return low


def _below(x: float) -> float:
    # Not NormalDist.cdf: far out it is a difference of two numbers that are almost 1.
    return math.erfc(-x / math.sqrt(2)) / 2


def lowest_rate(hits: int, trials: int, *, miss: float) -> float:
    """Clopper & Pearson 1934: the rate below which as many hits are rarer than `miss`."""
    low, high = 0.0, hits / trials
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(hits, trials, middle) < miss else (low, middle)
    return low


def highest_rate(hits: int, trials: int, *, miss: float) -> float:
    """Clopper & Pearson 1934: the rate above which so few hits are rarer than `miss`."""
    return 1 - lowest_rate(trials - hits, trials, miss=miss)


def at_least(hits: int, trials: int, rate: float) -> float:
    """P[Binomial(trials, rate) ≥ hits]."""
    return float(min(1.0, binomial(trials, rate)[hits:].sum()))


def binomial(trials: int, rate: float) -> Scores:
    """P[Binomial(trials, rate) = k] for k from 0 to `trials`."""
    k = np.arange(trials + 1)
    if rate in (0.0, 1.0):
        return np.where(k == (trials if rate else 0), 1.0, 0.0)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    chances: Scores = np.exp(log_choose + k * math.log(rate) + (trials - k) * math.log1p(-rate))
    return chances
