"""Clipped sums of gradients that are one row a unit: the one place where a unit's influence is bounded."""

from __future__ import annotations

import torch

BLOCK = 2**18
"""Values of each row that are held in float64 at a time."""


def zero_sum(rows: torch.Tensor) -> torch.Tensor:
    """A sum to begin with: float64 zeros, as long as a row; on the CPU where the rows' device has no float64."""
    device = torch.device("cpu") if rows.device.type == "mps" else rows.device
    return torch.zeros(rows.shape[-1], dtype=torch.float64, device=device)


def add_clipped(rows: torch.Tensor, clip: float, total: torch.Tensor) -> list[bool]:
    """Add Σᵢ min(1, C / ‖rowᵢ‖₂) · rowᵢ to `total` (Abadi et al. 2016, algorithm 1); rows (n, P), see `zero_sum`.

    A row that is not finite counts as zero, else one unit could turn the sum to nothing; returned is which rows
    count. Norms and sum are float64: adding or taking away a row moves the sum by no more than C, rounding included.
    """
    blocks = [slice(first, first + BLOCK) for first in range(0, rows.shape[1], BLOCK)]
    squares = total.new_zeros(len(rows))
    for block in blocks:
        squares += rows[:, block].to(total).square().sum(1)
    norms = squares.sqrt()
    counts = torch.isfinite(norms)
    if not counts.all():
        rows = rows[counts.to(rows.device)]
    factors = (clip / norms[counts]).clamp_(max=1.0)
    for block in blocks:
        total[block] += factors @ rows[:, block].to(total)
    return [bool(count) for count in counts]
