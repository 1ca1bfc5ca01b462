"""Learning-rate schedules: a step in, a learning rate out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

ScheduleName = Literal["linear", "cosine", "constant"]
MOST_WARMUP_STEPS = 10
"""Of a run that is not told how many. In a run of twenty steps ten are half: 1 % more perplexity at its end."""


class Scheduler(Protocol):
    """The learning rate of optimizer step `step`, counted from 0."""

    def __call__(self, step: int) -> float:
        """The learning rate of step `step`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantScheduler:
    """Linear warm-up to `base_lr` over `warmup_steps`, then `base_lr`."""

    base_lr: float
    warmup_steps: int = 0

    def __call__(self, step: int) -> float:
        """The learning rate of step `step`."""
        return self.base_lr * _warm(step, self.warmup_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScheduler:
    """Linear warm-up, then a straight line to zero, reached after `total_steps`."""

    base_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """The learning rate of step `step`."""
        if step < self.warmup_steps:
            return self.base_lr * _warm(step, self.warmup_steps)
        return self.base_lr * (1.0 - _progress(step, self.warmup_steps, self.total_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineScheduler:
    """Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, SGDR, eq. 5, one cycle)."""

    base_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """The learning rate of step `step`."""
        if step < self.warmup_steps:
            return self.base_lr * _warm(step, self.warmup_steps)
        return self.base_lr * 0.5 * (1.0 + math.cos(math.pi * _progress(step, self.warmup_steps, self.total_steps)))


def make_scheduler(name: ScheduleName, *, base_lr: float, warmup_steps: int | None, total_steps: int) -> Scheduler:
    """The schedule that a configuration names.

    `warmup_steps` None is a tenth of the run, at most 10; one that is longer than half the run is cut to a tenth, too.
    """
    if warmup_steps is None:
        warmup_steps = min(MOST_WARMUP_STEPS, total_steps // 10)
    elif 2 * warmup_steps > total_steps:
        warmup_steps = total_steps // 10
    match name:
        case "constant":
            return ConstantScheduler(base_lr=base_lr, warmup_steps=warmup_steps)
        case "cosine":
            return CosineScheduler(base_lr=base_lr, warmup_steps=warmup_steps, total_steps=total_steps)
        case "linear":
            return LinearScheduler(base_lr=base_lr, warmup_steps=warmup_steps, total_steps=total_steps)


def default_learning_rate(parameters: int) -> float:
    """A learning rate for a base of so many parameters, for runs of minutes.

    3e-3 was measured best on a base of 135 M (docs/performance.md); larger bases want less, and the power law
    passes near the 2e-4 that is customary for LoRA on 7 B.
    """
    return float(min(3e-3, 3e-3 * (135e6 / max(parameters, 1)) ** 0.7))


def _warm(step: int, warmup_steps: int) -> float:
    # Step 0 already learns a little: a first step at rate zero would be a forward and backward pass for nothing.
    return min(1.0, (step + 1) / (warmup_steps + 1)) if warmup_steps else 1.0


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
