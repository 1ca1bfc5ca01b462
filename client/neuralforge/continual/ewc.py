"""Elastic weight consolidation (Kirkpatrick et al. 2017): what mattered to earlier sessions moves least in this one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from neuralforge.continual.fisher import Fisher, compute_fisher_information
from neuralforge.continual.order import layout_of, pairs, to_flat
from neuralforge.continual.product import STRONGEST, ProductPenalty
from neuralforge.continual.state import EWCState
from neuralforge_common.errors import TrainingError

if TYPE_CHECKING:
    from neuralforge.training.trainer import Dataset, LoRATrainer

Space = Literal["factors", "product"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorPenalty:
    """weight · Σ F (w − anchor)², for every value of A and B by itself. Vectors are flat, in the model's order.

    A `Settling` penalty: its step is the proximal one, w ← (w + c · anchor) / (1 + c) with c = 2 · weight · F · rate.
    """

    weight: float
    importance: torch.Tensor
    anchor: torch.Tensor

    def value(self, vector: torch.Tensor) -> float:
        """Σ F (w − anchor)², summed in float64."""
        drift = vector.detach() - self.anchor
        return float(drift.square_().mul_(self.importance).sum(dtype=torch.float64))

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """The term's value; it pulls in `settle`, and adds nothing to the gradient."""
        return self.weight * self.value(vector) if self.weight else 0.0

    def settle(self, vector: torch.Tensor, rates: torch.Tensor) -> None:
        """Move each value towards its anchor by its share, 1 − 1 / (1 + c); nothing at all where the weight is 0."""
        if self.weight == 0:
            return
        # Written so that a c beyond float32, infinity, is a share of 1, and an importance of 0 stays a share of 0.
        strength = rates * self.importance * (2 * min(self.weight, STRONGEST))
        vector.lerp_(self.anchor, 1 - 1 / (1 + strength))

    def digest(self) -> str:
        """Of the weight and the bytes of both vectors."""
        found = hashlib.blake2b(f"ewc factors {self.weight}".encode(), digest_size=16)
        for part in (self.importance, self.anchor):
            found.update(part.detach().cpu().numpy().tobytes())
        return found.hexdigest()


class EWCRegularizer:
    """Keeps what earlier sessions have learnt: `consolidate` after each, `penalties` for the training of the next.

        ewc = EWCRegularizer(ewc_lambda=0.5)
        trainer.train(first)
        ewc.consolidate(trainer, first)
        trainer.train(second, penalties=ewc.penalties(trainer))

    The scale of `ewc_lambda`: the Fisher is divided so that a move as far as the adapter has come from its base, as
    the Fisher measures it, costs `ewc_lambda` nats a token beside the loss of the new code (see `Fisher.normalized`).
    Measured on nf-tiny, Python then C++ (benchmarks/ewc_scale.py): at rank 8, 0.1 leaves 88 % of the forgetting, 0.5
    leaves 62 %, 1 leaves 46 %, 5 leaves 14 %; the new code's loss is then higher by 0.3, 1.7, 3.3 and 10 %. With 0.5 it
    is 50 % at rank 2, 71 % at rank 32, and 31 % where the first session had a fifth of the data. `decay` is how much of
    the importance an older session keeps with each newer one.

    `space`: A and B are known only up to an invertible r × r change, (B·R⁻¹)·(R·A) is the same adapter. "factors"
    holds A and B by themselves, and so holds still what the loss cannot see as well; "product" holds B·A alone. It is
    no better for that: a product at 0.5 keeps and learns, within the noise of three seeds, what factors at 1 do. The
    factors are the default: on 2.4 M values a step costs 0.02 s and not 0.1 s, and a growing weight holds the weights.
    """

    def __init__(
        self,
        ewc_lambda: float = 0.5,
        *,
        decay: float = 0.9,
        space: Space = "factors",
        state: EWCState | None = None,
    ) -> None:
        if not 0 <= ewc_lambda < float("inf") or not 0 <= decay <= 1:
            raise TrainingError(
                f"wanted an EWC weight of 0 or more and a decay from 0 to 1, got {ewc_lambda} and {decay}",
                hint="ewc_lambda: 0.5 is a good start, 0 means without",
            )
        self.ewc_lambda = ewc_lambda
        self.decay = decay
        self.space: Space = space
        self.state = state

    def consolidate(self, trainer: LoRATrainer, examples: Dataset, *, limit: int = 200, seed: int = 0) -> None:
        """Take the adapter as it stands for what is to be kept, and `examples` for what it is to be kept good at.

        Raises:
            CheckpointError: what was kept before belongs to another adapter.
            DataError, TrainingError: see `compute_fisher_information`.
        """
        if self.state is not None:
            self.state.check(trainer.spec, layout_of(trainer.flat))
        self.take(compute_fisher_information(trainer, examples, limit=limit, seed=seed))

    def take(self, fisher: Fisher) -> None:
        """As `consolidate`, of a Fisher that was computed otherwise; raises CheckpointError."""
        self.state = EWCState.after(fisher, self.state, decay=self.decay)

    def penalties(self, trainer: LoRATrainer) -> tuple[FactorPenalty | ProductPenalty, ...]:
        """For `LoRATrainer.train`; none where the weight is 0 or there was no earlier session.

        Raises:
            CheckpointError: what was kept belongs to another adapter.
        """
        if self.state is None or self.ewc_lambda == 0:
            return ()
        return (self._term(trainer, self.state, self.ewc_lambda),)

    def penalty(self, trainer: LoRATrainer) -> float:
        """How far the adapter has moved from what was kept, at a weight of 1: 0 is not at all, 1 the whole way back.

        Raises:
            CheckpointError: what was kept belongs to another adapter.
        """
        return 0.0 if self.state is None else self._term(trainer, self.state, 1.0).value(trainer.flat.vector)

    def save(self, path: str | Path) -> None:
        """Put down what is kept, if anything, in a private file; raises StorageError."""
        if self.state is not None:
            self.state.save(Path(path))

    def load(self, path: str | Path) -> None:
        """Take up what `save` has put down; raises CheckpointError and StorageError."""
        self.state = EWCState.load(Path(path))

    def _term(self, trainer: LoRATrainer, state: EWCState, weight: float) -> FactorPenalty | ProductPenalty:
        state.check(trainer.spec, layout_of(trainer.flat))
        importance = to_flat(trainer.flat, state.layout, state.importance)
        anchor = to_flat(trainer.flat, state.layout, state.anchor)
        if self.space == "factors":
            return FactorPenalty(weight=weight, importance=importance, anchor=anchor)
        return ProductPenalty.of(pairs(trainer.flat), weight=weight, importance=importance, anchor=anchor)
