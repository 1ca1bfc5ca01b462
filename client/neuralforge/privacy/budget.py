"""How far a budget reaches: the filter that stops before it is exceeded, and the noise that makes a plan fit into it.

Rényi divergences of steps add up at every order, also where later steps were chosen after seeing what came of earlier
ones, and what stops before the sum exceeds what (ε, δ) allows is (ε, δ)-private (Feldman & Zrnic 2021, "Individual
Privacy Accounting via a Rényi Filter"). That is proved for one order, fixed in advance: here the one at which the
budget lasts longest when its first steps are charged. It is written into the ledger and kept.

The `prv` accountant (Gopi, Lee & Wutschitz 2021, from opacus) is tighter, and counts only a schedule that was fixed
before its first step, for data that nothing was learnt from before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from neuralforge_common.accounting import ORDERS, Steps, allowance, cost, epsilon, least_noise
from neuralforge_common.errors import PrivacyError

Accountant = Literal["rdp", "prv"]

_ROUNDING = 1e-9
_PRV_ERROR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """(ε, δ) that no unit of data may exceed in all that its scope ever releases.

    Raises:
        PrivacyError: ε that is not above 0 and finite, or δ outside (0, 1).
    """

    target_epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.target_epsilon < math.inf and 0 < self.delta < 1):
            raise PrivacyError(
                f"privacy: wanted a target ε above 0 and δ between 0 and 1, got {self.target_epsilon}, {self.delta}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Steps that are charged at once: cohort -> the q of its units, and the σ and the number of the steps.

    Where units of one cohort are drawn with different probabilities, the cohort's q is the highest of them.

    Raises:
        PrivacyError: nobody takes part, or a number out of its bounds.
    """

    rates: Mapping[int, float]
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not self.rates:
            raise PrivacyError("a block of private steps: wanted the data of at least one cohort, got none")
        for cohort in self.rates:
            self.of(cohort)

    @property
    def busiest(self) -> int:
        """The cohort that is drawn from most."""
        return max(self.rates, key=lambda cohort: self.rates[cohort])

    def of(self, cohort: int) -> Steps:
        """What this block is to the units of a cohort."""
        return Steps(sample_rate=self.rates[cohort], noise_multiplier=self.noise_multiplier, count=self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a cohort has been through, and the order that its budget is counted at; None before its first steps."""

    history: tuple[Steps, ...] = ()
    order: float | None = None


def lasts(standing: Standing, budget: Budget, *, sample_rate: float, noise_multiplier: float) -> tuple[int, float]:
    """How many more such steps the budget allows, and the order that says so."""
    allowed = allowance(budget.target_epsilon, budget.delta)
    # What has been charged block by block has been rounded as often. Order by order: at high ones what is spent may be
    # a billion times what is allowed.
    room = allowed + _ROUNDING * np.abs(allowed) - cost(standing.history)
    each = cost([Steps(sample_rate=sample_rate, noise_multiplier=noise_multiplier, count=1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(room > 0, room / each, 0.0)
    at = int(np.argmax(reach)) if standing.order is None else int(np.argmin(np.abs(ORDERS - standing.order)))
    return int(min(reach[at], 2.0**53)), float(ORDERS[at])


def noise_for(
    standings: Mapping[int, Standing],
    budget: Budget,
    *,
    rates: Mapping[int, float],
    steps: int,
    accountant: str = "rdp",
) -> float:
    """The least σ with which so many steps fit into the budget of every cohort in `rates`.

    Raises:
        PrivacyError: no noise is enough, or `prv` for data that something was learnt from before.
    """

    def fits(sigma: float) -> bool:
        return all(
            lasts(standings[cohort], budget, sample_rate=rate, noise_multiplier=sigma)[0] >= steps
            for cohort, rate in rates.items()
        )

    sigma = least_noise(fits)
    if sigma is None:
        spent = max(epsilon(standings[cohort].history, budget.delta) for cohort in rates)
        raise PrivacyError(
            f"privacy budget: no noise lets {steps:,} more steps fit into ε = {budget.target_epsilon:g} at "
            f"δ = {budget.delta:g}: ε = {spent:.3g} is spent",
            hint="fewer steps, or a higher target",
        )
    if accountant == "prv":
        require_fresh(standings[cohort] for cohort in rates)
        rate = max(rates.values())

        def fits_tightly(lower: float) -> bool:
            schedule = Steps(sample_rate=rate, noise_multiplier=lower, count=steps)
            return prv_epsilon(schedule, budget.delta) <= budget.target_epsilon

        sigma = least_noise(fits_tightly, low=0.85 * sigma, high=sigma, digits=3) or sigma
    return sigma


def require_fresh(standings: Iterable[Standing]) -> None:
    """Raises PrivacyError where data has a history: `prv` cannot take up what it did not plan."""
    if any(standing.history for standing in standings):
        raise PrivacyError(
            "privacy: accountant: prv counts only a schedule fixed in advance, charged as a whole, for data that "
            "nothing was learnt from before; some of this data has been charged already",
            hint="accountant: rdp",
        )


@lru_cache(maxsize=256)
def prv_epsilon(schedule: Steps, delta: float) -> float:
    """The ε at δ of a schedule that was fixed in advance: the upper end of opacus' PRV bound."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(schedule.noise_multiplier, schedule.sample_rate, schedule.count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its first guess at the domain is by few orders, and says so
        return float(accountant.get_epsilon(delta, eps_error=_PRV_ERROR, delta_error=delta / 1000))
