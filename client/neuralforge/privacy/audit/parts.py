"""What is audited, and what is claimed of it: apart from each other, so that one may contradict the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from neuralforge.privacy.sampling import Population
from neuralforge.privacy.step import Drawer, Mechanism
from neuralforge.training.engine import Engine
from neuralforge.training.flat import FlatParameters
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.noise import Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What a private step is made of; each part can be exchanged for another, a broken one too. No dropout."""

    engine: Engine
    flat: FlatParameters
    mechanism: Mechanism
    sampler: Callable[[Population], Drawer]
    noise: Noise
    sides: str = "AB"
    trainable: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClaim:
    """What the accountant believes of a step, whatever its parts are."""

    noise_multiplier: float
    clip: float
    sample_rate: float
    delta: float

    def epsilon(self, *, sample_rate: float) -> float:
        """Of one step in which the canary is drawn at this rate."""
        steps = Steps(sample_rate=sample_rate, noise_multiplier=self.noise_multiplier, count=1)
        return epsilon([steps], self.delta)
