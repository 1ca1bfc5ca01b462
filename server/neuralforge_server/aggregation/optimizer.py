"""The server's own step: a round's mean delta taken as a gradient (its negative) by an optimizer with a memory.

Reddi et al. 2021, "Adaptive Federated Optimization" (FedAdam, FedYogi; Algorithm 2, no bias correction, v₋₁ = τ²);
Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution" (FedAvgM, `momentum`); Douillard et al.
2023, "DiLoCo", whose outer step is Nesterov's (0.7 and 0.9 there).

    fedavg     x ← x + η·Δ
    momentum   m ← β₁·m + Δ                  x ← x + η·m
    nesterov   m ← β₁·m + Δ                  x ← x + η·(Δ + β₁·m)
    fedadam    m ← β₁·m + (1 − β₁)·Δ         v ← β₂·v + (1 − β₂)·Δ²                     x ← x + η·m / (√v + τ)
    fedyogi    m as in fedadam               v ← v − (1 − β₂)·Δ²·sign(v − Δ²)           x as in fedadam
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import Part
from neuralforge_server.aggregation.method import GlobalState

OptimizerName: TypeAlias = Literal["fedavg", "momentum", "nesterov", "fedadam", "fedyogi"]

FIRST, SECOND = "first", "second"
"""Names of the moments in a state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimizer:
    """One of the five steps above; `momentum` is β₁. Only the part that was trained moves, and its moments."""

    name: OptimizerName = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def is_plain(self) -> bool:
        """Whether the step is the mean delta itself."""
        return self.name == "fedavg" and self.learning_rate == 1.0

    def step(self, state: GlobalState, part: Part, delta: FloatArray) -> tuple[FloatArray, Mapping[str, FloatArray]]:
        """The new vector (layout.size,) and moments, after a mean delta of that part."""
        where = state.layout.part_slice(part)
        vector = state.vector.copy()
        if self.name == "fedavg":
            vector[where] += delta if self.learning_rate == 1.0 else np.float32(self.learning_rate) * delta
            return vector, state.moments
        rate, beta1 = np.float32(self.learning_rate), np.float32(self.momentum)
        first = _moment(state, FIRST, 0.0)
        moments = {FIRST: first}
        if self.name in ("momentum", "nesterov"):
            first[where] = beta1 * first[where] + delta
            ahead = first[where] if self.name == "momentum" else delta + beta1 * first[where]
            vector[where] += rate * ahead
            return vector, moments
        beta2, tau = np.float32(self.beta2), np.float32(self.tau)
        first[where] = beta1 * first[where] + (np.float32(1) - beta1) * delta
        second = _moment(state, SECOND, self.tau**2)
        square, old = np.square(delta), second[where]
        if self.name == "fedadam":
            second[where] = beta2 * old + (np.float32(1) - beta2) * square
        else:
            second[where] = old - (np.float32(1) - beta2) * square * np.sign(old - square)
        vector[where] += rate * first[where] / (np.sqrt(second[where]) + tau)
        return vector, moments | {SECOND: second}


def _moment(state: GlobalState, name: str, beginning: float) -> FloatArray:
    """A copy of a moment to write to."""
    if name in state.moments:
        return state.moments[name].copy()
    return np.full(state.layout.size, beginning, np.float32)
