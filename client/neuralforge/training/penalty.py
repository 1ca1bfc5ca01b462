"""Terms of the loss that look at the weights alone: what they must not move away from, and how much that weighs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


class Penalty(Protocol):
    """A term added to the mean loss of every step. Vectors are flat, fp32, in the order of `FlatParameters`."""

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """Add the term's gradient at `vector` to `gradient`, in place; return the term's value in nats."""
        ...

    def digest(self) -> str:
        """What tells this term from another, so that a checkpoint is not resumed under one that it did not have."""
        ...


@runtime_checkable
class Settling(Penalty, Protocol):
    """A penalty that acts after the optimizer's step, where Adam cannot normalise it away; its `add` adds nothing.

    AdamW moves a value by its learning rate whatever the size of the gradient: a strong pull through the gradient
    makes the weights shake around the anchor and hold nothing. A proximal step (Parikh & Boyd 2014, "Proximal
    Algorithms", §4.2) ends at the anchor as the pull grows, and rests where the gradients of loss and term cancel.
    """

    def settle(self, vector: torch.Tensor, rates: torch.Tensor) -> None:
        """Move `vector`, in place, towards what the term wants; `rates` is how far a gradient of 1 moves each value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proximal:
    """FedProx: μ/2 · ‖w − anchor‖² (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", §3.2)."""

    mu: float
    anchor: torch.Tensor

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """Add μ · (w − anchor); nothing at all where μ is 0."""
        if self.mu == 0:
            return 0.0
        drift = vector.detach() - self.anchor
        gradient.add_(drift, alpha=self.mu)
        return 0.5 * self.mu * float(drift @ drift)

    def digest(self) -> str:
        """Of μ and the anchor's bytes."""
        anchor = self.anchor.detach().cpu().numpy().tobytes()
        return hashlib.blake2b(f"proximal {self.mu}".encode() + anchor, digest_size=16).hexdigest()
