"""Whether units are drawn as the accountant believes: each alone, with probability q, whatever came before."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from neuralforge.data.tokens import TokenizedExample
from neuralforge.privacy.audit.report import Check
from neuralforge.privacy.sampling import Population
from neuralforge.privacy.step import Drawer

Counts = npt.NDArray[np.int64]

UNITS = 64

FAR = 6.0
"""Standard deviations beyond which an honest count does not come about: one audit in hundreds of millions."""


def sampling_checks(sampler: Callable[[Population], Drawer], *, sample_rate: float, steps: int) -> list[Check]:
    """Draw `steps` times from a population of `UNITS`; each count of inclusions must be binomial.

    The mean alone says little: batches that deal everybody out once an epoch have the right one. So the spread of
    counts is looked at as well, in a step, over an epoch, and at the same place of every epoch.
    """
    epoch = max(2, round(1 / sample_rate))
    steps = max(4, steps // epoch) * epoch
    unit = (TokenizedExample(index=0, tokens=(0, 0), start=1),)
    drawer = sampler(Population(units={str(number): unit for number in range(UNITS)}, sample_rate=sample_rate))
    drawn = np.zeros((steps, UNITS), dtype=np.int64)
    for step in range(steps):
        for draw in drawer.draw(step):
            drawn[step, draw.unit] += 1
    by_epoch = drawn.reshape(-1, epoch, UNITS)
    most = int(drawn.max(initial=0))
    checks = [
        _mean_check(drawn, sample_rate),
        Check(name="inclusions of a unit in a step", passed=most <= 1, found=f"{most}", wanted="at most 1"),
    ]
    if sample_rate < 1:
        checks += [
            _spread_check("in a step", drawn.sum(1), UNITS, sample_rate),
            _spread_check("of a unit in an epoch", by_epoch.sum(1), epoch, sample_rate),
            _spread_check("of a unit at one place of all epochs", by_epoch.sum(0), len(by_epoch), sample_rate),
        ]
    return checks


def _mean_check(drawn: Counts, rate: float) -> Check:
    expected = drawn.size * rate
    deviation = math.sqrt(drawn.size * rate * (1 - rate))
    low, high = expected - FAR * deviation, expected + FAR * deviation
    total = int(drawn.sum())
    return Check(
        name="inclusions in all",
        passed=low <= total <= high,
        found=f"{total:,}",
        wanted=f"{low:,.0f} to {high:,.0f}",
    )


def _spread_check(what: str, counts: Counts, trials: int, rate: float) -> Check:
    """The variance of counts over that of Binomial(trials, rate), by their fourth central moment near 1."""
    variance = trials * rate * (1 - rate)
    ratio = float(np.mean((counts - trials * rate) ** 2)) / variance
    slack = FAR * math.sqrt((2 + (1 - 6 * rate * (1 - rate)) / variance) / counts.size)
    return Check(
        name=f"spread of inclusions {what}",
        passed=abs(ratio - 1) <= slack,
        found=f"{ratio:.3f} of the binomial's",
        wanted=f"{max(0.0, 1 - slack):.3f} to {1 + slack:.3f}",
    )
