"""What a plan demands of a private round, and what may be said about privacy afterwards: always with its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from neuralforge_common.errors import PrivacyError
from neuralforge_common.strict_json import shortened

Unit = Literal["sample", "file", "repository"]
"""What two neighbouring datasets differ by: one example, all of one file, all of one repository."""

Level = Literal["sample", "file", "repository", "client"]
"""What a figure may be about: a unit, or (noise by the coordinator) all data of one client."""

LEVELS: dict[str, str] = {
    "sample": "example-level",
    "file": "file-level",
    "repository": "repository-level",
    "client": "user-level: one client's whole data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTerms:
    """How every step of a private round is taken: DP-SGD (Abadi et al. 2016) with true Poisson sampling.

    `sample_rate` q is the probability with which each unit is drawn in a step, `max_grad_norm` C the clipping norm of a
    unit's gradient, `noise_multiplier` σ the noise's standard deviation over C, `divisor` what the noised sum is
    divided by: all public, none computed from anybody's data. (`target_epsilon`, `delta`) is the budget of the whole
    federation, for each client's data.

    Raises:
        PrivacyError: a value out of its bounds.
    """

    noise_multiplier: float
    max_grad_norm: float = 1.0
    sample_rate: float = 0.05
    divisor: float = 16.0
    unit: Unit = "sample"
    target_epsilon: float = 8.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("noise_multiplier", 0.0, 1e6),
            ("max_grad_norm", 0.0, 1e9),
            ("sample_rate", 0.0, 1.0),
            ("divisor", 0.0, 1e9),
            ("target_epsilon", 0.0, 1e6),
            ("delta", 0.0, 0.1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
                raise PrivacyError(
                    f"privacy: {name}: wanted a number above {low:g}, at most {high:g}, got {shortened(value)}"
                )
            object.__setattr__(self, name, float(value))
        if self.unit not in get_args(Unit):
            raise PrivacyError(f"privacy: unit: wanted sample, file or repository, got {shortened(self.unit)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStatement:
    """(ε, δ) of what has been released, for one unit of one client's data, against whoever sees all releases.

    `epsilon` is the maximum over the cohorts of data, over all steps so far, restarts included. `note` says in words
    what it does not cover.

    Raises:
        PrivacyError: a value out of its bounds.
    """

    epsilon: float
    delta: float
    unit: Level
    accountant: Literal["rdp", "prv"] = "rdp"
    steps: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon) and 0 < self.delta < 1):
            raise PrivacyError(
                f"privacy: wanted a finite epsilon and a delta in (0, 1), got {self.epsilon}, {self.delta}"
            )
        if self.unit not in get_args(Level):
            raise PrivacyError(f"privacy: unit: wanted {', '.join(get_args(Level))}, got {shortened(self.unit)}")

    def __str__(self) -> str:
        return f"ε = {self.epsilon:.3g} at δ = {self.delta:g}, {LEVELS[self.unit]}"
