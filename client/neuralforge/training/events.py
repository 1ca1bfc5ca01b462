"""What a training run tells whoever watches: a progress bar, a metrics file, TensorBoard, a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from neuralforge.evaluation.metrics import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """Before the first step; `step` is above 0 where a run goes on from a checkpoint."""

    step: int
    total_steps: int
    examples: int
    evaluation_examples: int
    trainable: int
    engine: str
    precision: str
    padding: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One optimizer step: mean loss in nats a token, sample tokens read, seconds taken.

    `loss` is None where a private step has drawn nothing. `gradient_norm` is the norm before clipping; `gradient_norms`
    the same for each target module where asked for. `penalty` is what penalties added to the loss, which does not
    contain it.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    penalty: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Held-out examples were scored after `step` steps; 0 is the base, before anything was learnt."""

    step: int
    evaluation: Evaluation
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """Everything needed to go on from `step` is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last step is done, or learning stopped early; the adapter is the one of `best_step`."""

    step: int
    best_step: int
    reason: str


Event: TypeAlias = RunStarted | StepDone | Evaluated | CheckpointSaved | RunFinished
Observer: TypeAlias = Callable[[Event], None]


def tell(observers: tuple[Observer, ...], event: Event) -> None:
    """Tell every observer, in order."""
    for observer in observers:
        observer(event)
