"""Soft targets of a batch, one row a target token, as the loss takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neuralforge.data.soft import SoftTargets
from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class SoftRows:
    """For N target tokens: `hard` (N,) weighs the cross-entropy; `weights` (N, k) each (logit at `ids` − `logits`)².

    Where an example has fewer logits than others, or none, the rest of its row weighs 0. `even`: `hard` is all ones.
    """

    hard: torch.Tensor
    ids: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    even: bool

    def at(self, rows: slice) -> SoftRows:
        """Some of the rows."""
        return SoftRows(self.hard[rows], self.ids[rows], self.logits[rows], self.weights[rows], self.even)

    def distance(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the logits at `ids`, fp32 (N, k): each row's weighted sum of squares (N,), and its gradient (N, k)."""
        drift = logits - self.logits
        weighted = self.weights * drift
        return (weighted * drift).sum(1), 2 * weighted


def soft_rows(
    examples: Sequence[TokenizedExample], soft: Mapping[int, SoftTargets], device: torch.device
) -> SoftRows | None:
    """Rows of the examples' targets, in order; None where none of them has soft targets.

    Raises:
        TrainingError: logits of another number of tokens than the example has targets.
    """
    found = [soft.get(example.index) for example in examples]
    if all(targets is None for targets in found):
        return None
    width = max((t.logits.ids.shape[1] for t in found if t is not None and t.logits is not None), default=0)
    count = sum(example.targets for example in examples)
    hard = np.ones(count, np.float32)
    ids = np.zeros((count, width), np.int64)
    logits = np.zeros((count, width), np.float32)
    weights = np.zeros((count, width), np.float32)
    first = 0
    for example, targets in zip(examples, found, strict=True):
        rows = slice(first, first + example.targets)
        first = rows.stop
        if targets is None:
            continue
        hard[rows] = targets.hard
        if targets.logits is not None:
            k = targets.logits.ids.shape[1]
            if len(targets.logits.ids) != example.targets:
                raise TrainingError(
                    f"stored logits of {len(targets.logits.ids)} tokens, the example has {example.targets} targets"
                )
            ids[rows, :k] = targets.logits.ids
            logits[rows, :k] = targets.logits.values
            weights[rows, :k] = targets.soft / k
    parts = [torch.from_numpy(array).to(device) for array in (hard, ids, logits, weights)]
    return SoftRows(parts[0], parts[1], parts[2], parts[3], even=bool((hard == 1).all()))
