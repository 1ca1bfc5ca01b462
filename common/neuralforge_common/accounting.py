"""What noisy steps cost: Rényi differential privacy of the Poisson-sampled Gaussian, composed and turned into (ε, δ).

A step draws each unit with probability q, sums contributions of norm at most 1 and adds N(0, σ²) to every coordinate.
For add/remove neighbours its RDP of order α is log A_α / (α - 1) with (Mironov, Talwar & Zhang 2019, "Rényi
Differential Privacy of the Sampled Gaussian Mechanism", section 3)

    A_α = E_{z ~ N(0, σ²)} [(1 - q + q·exp((2z - 1) / 2σ²))^α]

a sum of binomials where α is whole, and here a quadrature where it is not. Steps add up order by order, also steps of
different q and σ. An RDP curve gives ε by Canonne, Kamath & Steinke 2020, "The Discrete Gaussian for Differential
Privacy", proposition 12 (Balle et al. 2020, theorem 21, is the same bound):

    ε = min_α ρ(α) + log((α - 1) / α) - (log δ + log α) / (α - 1)

q = 1 is the plain Gaussian: one user's whole update, noised once a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuralforge_common.errors import PrivacyError

Curve = NDArray[np.float64]
"""Rényi divergences in nats, one for each of `ORDERS`."""

ORDERS: Curve = np.array(
    [1 + x / 10 for x in range(1, 100)] + [float(x) for x in range(11, 64)] + [2.0**x for x in range(6, 11)]
)
"""Dense where the orders of training are, up to 1,024 for very small ε."""
ORDERS.flags.writeable = False

MAX_NOISE = 1e6
LEAST_NOISE = 0.05
"""Below this σ sampling is no longer counted as a help: the bound is the plain Gaussian's, and no use to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """`count` steps with the same q (`sample_rate`) and σ (`noise_multiplier`).

    Raises:
        PrivacyError: q outside [0, 1], or σ or the count negative.
    """

    sample_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.sample_rate <= 1:
            raise PrivacyError(f"sample rate: wanted a probability, got {self.sample_rate}")
        if not self.noise_multiplier >= 0:
            raise PrivacyError(f"noise multiplier: wanted a number ≥ 0, got {self.noise_multiplier}")
        if self.count < 0:
            raise PrivacyError(f"steps: wanted a whole number ≥ 0, got {self.count}")


def step_cost(sample_rate: float, noise_multiplier: float) -> Curve:
    """The RDP of one step at every order; infinite where there is no noise."""
    if sample_rate == 0:
        return np.zeros_like(ORDERS)
    if noise_multiplier == 0:
        return np.full_like(ORDERS, math.inf)
    if sample_rate == 1 or noise_multiplier < LEAST_NOISE:
        return ORDERS / (2 * noise_multiplier**2)
    whole = np.floor(ORDERS) == ORDERS
    log_moments = np.empty_like(ORDERS)
    log_moments[whole] = [_log_moment(int(order), sample_rate, noise_multiplier) for order in ORDERS[whole]]
    log_moments[~whole] = _log_moments_by_quadrature(ORDERS[~whole], sample_rate, noise_multiplier)
    return np.maximum(log_moments, 0) / (ORDERS - 1)


def cost(history: Iterable[Steps]) -> Curve:
    """The RDP of all these steps together; the curve of each (q, σ) is computed once in a process."""
    total = np.zeros_like(ORDERS)
    for steps in history:
        if steps.count:
            total = total + steps.count * _cached_step_cost(steps.sample_rate, steps.noise_multiplier)
    return total


def epsilon(history: Iterable[Steps], delta: float) -> float:
    """The ε of all these steps together at δ; 0 for none, infinite where there was no noise."""
    return epsilon_of(cost(history), delta)


def epsilon_of(curve: Curve, delta: float) -> float:
    """The least ε that an RDP curve gives at δ."""
    if not curve.any():
        return 0.0
    return max(0.0, float(np.min(curve - allowance(0.0, delta))))


def allowance(target_epsilon: float, delta: float) -> Curve:
    """The RDP that may be spent at an order for (ε, δ) to hold: enough that a curve is below it at one order."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta: wanted a number between 0 and 1, got {delta}")
    return target_epsilon - np.log1p(-1 / ORDERS) + (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)


def calibrate(
    *, target_epsilon: float, delta: float, sample_rate: float, steps: int, history: Iterable[Steps] = ()
) -> float:
    """The least σ (to 4 digits, rounded up) with which `steps` more steps after `history` stay within (ε, δ).

    Raises:
        PrivacyError: no noise is enough, `history` has spent it.
    """
    room = allowance(target_epsilon, delta) - cost(history)
    sigma = least_noise(lambda sigma: bool(np.any(steps * step_cost(sample_rate, sigma) <= room)))
    if sigma is None:
        raise PrivacyError(
            f"no noise keeps {steps:,} more steps within ε = {target_epsilon:g} at δ = {delta:g}",
            hint="fewer steps, or a higher target",
        )
    return sigma


def least_noise(
    enough: Callable[[float], bool], *, low: float = LEAST_NOISE, high: float = MAX_NOISE, digits: int = 4
) -> float | None:
    """The least σ between two bounds that is `enough`, rounded up to so many digits; None where `high` is not.

    `enough` must stay true as σ grows; it is asked some 20 times.
    """
    if not enough(high):
        return None
    if enough(low):
        return low
    # Doubling first: what is looked for lies near 1, the upper bound does not.
    while low < high / 2:
        if enough(low * 2):
            high = low * 2
            break
        low *= 2
    tolerance = 10.0**-digits / 2
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    unit = 10.0 ** (math.floor(math.log10(high)) + 1 - digits)
    rounded = round(math.ceil(high / unit) * unit, 12)
    return rounded if enough(rounded) else high


@lru_cache(maxsize=512)
def _cached_step_cost(sample_rate: float, noise_multiplier: float) -> Curve:
    curve = step_cost(sample_rate, noise_multiplier)
    curve.flags.writeable = False
    return curve


def _log_moment(order: int, q: float, sigma: float) -> float:
    """Log A_α for a whole α: Mironov et al. 2019, equation 4 of section 3.3."""
    k = np.arange(order + 1)
    log_binomials = _log_factorial(order) - _log_factorials(order) - _log_factorials(order)[::-1]
    terms = log_binomials + k * math.log(q) + (order - k) * math.log1p(-q) + (k * k - k) / (2 * sigma**2)
    return _log_sum(terms)


def _log_moments_by_quadrature(orders: Curve, q: float, sigma: float) -> Curve:
    """Log A_α for any α by the trapezoidal rule.

    The integrand is analytic within πσ² of the real line and falls off as a Gaussian, so the rule's error falls as
    exp(-2π·πσ²/h) and exp(-2π²σ²/h²) (Trefethen & Weideman 2014, "The Exponentially Convergent Trapezoidal Rule"):
    below 1e-60 at this step h. Its mass lies around 0 to α.
    """
    h = sigma * min(sigma, 1.0) / 8
    found = np.empty_like(orders)
    for i, order in enumerate(orders):
        z = np.arange(-14 * sigma, order + 14 * sigma + h, h)
        ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
        found[i] = _log_sum(order * ratio - (z / sigma) ** 2 / 2)
    return found + math.log(h) - math.log(sigma) - math.log(2 * math.pi) / 2


@lru_cache(maxsize=128)
def _log_factorials(n: int) -> Curve:
    """Log 0!, log 1!, …, log n!."""
    return np.array([math.lgamma(k + 1) for k in range(n + 1)])


def _log_factorial(n: int) -> float:
    return math.lgamma(n + 1)


def _log_sum(terms: Curve) -> float:
    top = float(np.max(terms))
    return top + math.log(float(np.sum(np.exp(terms - top))))
