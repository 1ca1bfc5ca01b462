"""O-LoRA: a new task's directions are kept at right angles to those of the tasks before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from neuralforge.training.flat import Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orthogonality:
    """weight · Σ over modules of ‖ A_old · A_newᵀ ‖² (Wang et al. 2023, "Orthogonal Subspace Learning", eq. 8).

    `old` is how many of the rank's first components are those of earlier tasks; `modules` is where A and B stand (see
    `order.pairs`). It pulls on the new A alone: where the old are trained as well, they are not to make way.
    """

    weight: float
    old: int
    modules: Sequence[tuple[Place, Place]]

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """Add 2 · weight · A_new · A_oldᵀ · A_old; nothing at all where the weight is 0."""
        if self.weight == 0:
            return 0.0
        total = 0.0
        for place, _ in self.modules:
            a = place.of(vector.detach())
            overlap = a[self.old :] @ a[: self.old].T
            place.of(gradient)[self.old :].add_(overlap @ a[: self.old], alpha=2 * self.weight)
            total += float(overlap.square().sum())
        return self.weight * total

    def digest(self) -> str:
        """Of the weight and of what is old; the old matrices themselves are part of the run's first vector."""
        facts = repr((self.weight, self.old, [place.offset for place, _ in self.modules]))
        return hashlib.blake2b(f"orthogonality {facts}".encode(), digest_size=16).hexdigest()
