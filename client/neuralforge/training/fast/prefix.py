"""Activations of the frozen layers under the lowest LoRA layer, kept over epochs.

Those layers never change, so what they make of an example is computed once. Examples are computed in fixed
groups: a value must not depend on which batch asked first, or a resumed run would differ in its last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from neuralforge.data.tokens import TokenizedExample

GROUP = 8


class PrefixCache:
    """`get` gives an example's activations (T, d), computing its group at the first call; None when over budget."""

    def __init__(
        self,
        examples: Sequence[TokenizedExample],
        compute: Callable[[Sequence[TokenizedExample]], list[torch.Tensor]],
        *,
        row_bytes: int,
        budget_bytes: int,
    ) -> None:
        self._compute = compute
        ordered = sorted(examples, key=lambda e: (len(e.tokens), e.index))
        self._group_of: dict[int, tuple[TokenizedExample, ...]] = {}
        left = budget_bytes
        for first in range(0, len(ordered), GROUP):
            group = tuple(ordered[first : first + GROUP])
            left -= row_bytes * sum(len(e.tokens) for e in group)
            if left < 0:
                break
            self._group_of.update({e.index: group for e in group})
        self._values: dict[int, torch.Tensor] = {}

    def get(self, example: TokenizedExample) -> torch.Tensor | None:
        """The example's activations, or None where memory does not reach."""
        group = self._group_of.get(example.index)
        if group is None:
            return None
        if example.index not in self._values:
            self._values.update(zip((e.index for e in group), self._compute(group), strict=True))
        return self._values[example.index]

    def get_all(self, examples: Sequence[TokenizedExample]) -> list[torch.Tensor] | None:
        """Activations of all the examples, or None where any is out of budget."""
        values = [self.get(e) for e in examples]
        present = [v for v in values if v is not None]
        return present if len(present) == len(values) else None
