"""LoRA on projections that share an input, as one pair of small matmuls instead of one pair each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from neuralforge.training.flat import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One adapted projection: its columns in the fused output, and where A (r, d_in) and B (d_out, r) stand."""

    columns: slice
    a: Place
    b: Place


@dataclass(slots=True)
class SavedLora:
    """What backward needs: x Aᵀ of all targets (M, R), and each target's dropout mask if there is dropout."""

    down: torch.Tensor
    masks: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Share:
    """Some rows of a batch, and the flat vector to which their part of the gradient is added."""

    vector: torch.Tensor
    rows: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who learns from a batch: by its rows, and by those alone that predict a target. `sides`: "AB", "A" or "B"."""

    every: tuple[Share, ...]
    predicting: tuple[Share, ...]
    sides: str = "AB"


class LoraGroup:
    """y += scaling · (x Aᵀ) Bᵀ for all targets of one fused projection.

    The A matrices stand stacked in the flat vector already, (R, d_in) with R = rank · targets; the B matrices are
    put on the diagonal of one (columns, R) matrix, so that a group costs what one adapter costs.
    """

    def __init__(self, targets: Sequence[Target], *, columns: int, scaling: float, dropout: float) -> None:
        self._targets = tuple(targets)
        self._rank = targets[0].a.shape[0]
        self._scaling = scaling
        self._dropout = dropout
        width, depth = self._rank * len(targets), targets[0].a.shape[1]
        self._a = Place(targets[0].a.offset, (width, depth))
        self._shape = (columns, width)
        self._up = torch.empty(0)
        self._down = torch.empty(0)

    def refresh(self, working: torch.Tensor) -> None:
        """Take this step's parameters from `working`, the flat vector in the compute type."""
        if self._up.dtype != working.dtype or self._up.shape != self._shape:
            self._up = working.new_zeros(self._shape)
        self._down = self._a.of(working)
        for i, target in enumerate(self._targets):
            self._up[target.columns, self._ranks(i)] = target.b.of(working)

    def forward(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator | None) -> SavedLora:
        """Add to y (M, columns) in place; dropout is drawn where a generator is given."""
        masks = []
        if generator is not None and self._dropout > 0:
            keep = 1.0 - self._dropout
            masks = [torch.empty_like(x).bernoulli_(keep, generator=generator).div_(keep) for _ in self._targets]
            parts = [(x * mask) @ self._down[self._ranks(i)].t() for i, mask in enumerate(masks)]
            down = torch.cat(parts, dim=1)
        else:
            down = x @ self._down.t()
        y.addmm_(down, self._up.t(), alpha=self._scaling)
        return SavedLora(down, masks)

    def backward(
        self,
        d_y: torch.Tensor,
        x: torch.Tensor,
        saved: SavedLora,
        shares: Sequence[Share],
        d_x: torch.Tensor | None,
        rows: torch.Tensor | None = None,
        *,
        sides: str = "AB",
    ) -> None:
        """Add the gradients of A and B to each share's vector, and that of x to `d_x`, at `rows` if given."""
        if "B" in sides:
            for share in shares:
                d_up = d_y[share.rows].t() @ saved.down[share.rows]
                for i, target in enumerate(self._targets):
                    target.b.of(share.vector).add_(d_up[target.columns, self._ranks(i)], alpha=self._scaling)
        if d_x is None and "A" not in sides:
            return
        d_down = d_y @ self._up
        if "A" in sides:
            for share in shares:
                self._learn_a(d_down[share.rows], x[share.rows], [m[share.rows] for m in saved.masks], share.vector)
        if d_x is None:
            return
        if not saved.masks:
            d_x.addmm_(d_down if rows is None else d_down[rows], self._down, alpha=self._scaling)
        for i, mask in enumerate(saved.masks):
            part = (d_down[:, self._ranks(i)] @ self._down[self._ranks(i)]).mul_(mask)
            d_x.add_(part if rows is None else part[rows], alpha=self._scaling)

    def _learn_a(
        self, d_down: torch.Tensor, x: torch.Tensor, masks: Sequence[torch.Tensor], gradient: torch.Tensor
    ) -> None:
        if not masks:
            self._a.of(gradient).add_(d_down.t() @ x, alpha=self._scaling)
        for i, mask in enumerate(masks):
            of_target = d_down[:, self._ranks(i)].t() @ (x * mask)
            self._targets[i].a.of(gradient).add_(of_target, alpha=self._scaling)

    def _ranks(self, i: int) -> slice:
        return slice(i * self._rank, (i + 1) * self._rank)
