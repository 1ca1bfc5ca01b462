"""Which examples are learnt together, in which order: a pure function of seed and epoch.

Nothing is drawn from a stream, so a resumed run needs no generator state to see the very same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuralforge.data.soft import SoftTargets
from neuralforge.data.tokens import TokenizedExample

WINDOW_BATCHES = 64
"""Batches whose examples are sorted by length together: padding falls under 5 %, order stays close to random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples for one forward and backward pass; `soft` says by index which of them are learnt in another way."""

    examples: tuple[TokenizedExample, ...]
    soft: Mapping[int, SoftTargets] = field(default_factory=dict, hash=False)

    @property
    def targets(self) -> int:
        """Tokens that the loss counts."""
        return sum(e.targets for e in self.examples)

    @property
    def tokens(self) -> int:
        """Tokens read, padding not counted."""
        return sum(e.length for e in self.examples)

    @property
    def padded_tokens(self) -> int:
        """Tokens read where every example is padded to the longest of the batch."""
        width = max(len(e.tokens) for e in self.examples) + max(len(e.context) for e in self.examples)
        return width * len(self.examples)


def epoch_batches(
    examples: Sequence[TokenizedExample], *, batch_size: int, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """Positions of the examples of each batch of one epoch, every example once.

    Shuffled, then sorted by length within windows of `WINDOW_BATCHES` batches, then the batches shuffled.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    order = generator.permutation(len(examples))
    window = batch_size * WINDOW_BATCHES
    batches: list[tuple[int, ...]] = []
    for first in range(0, len(order), window):
        part = sorted(order[first : first + window].tolist(), key=lambda i: (examples[i].length, i))
        batches += [tuple(part[i : i + batch_size]) for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def evaluation_batches(examples: Sequence[TokenizedExample], *, batch_size: int) -> list[Batch]:
    """All examples once, sorted by length: the cheapest order where order does not matter."""
    ordered = sorted(examples, key=lambda e: (e.length, e.index))
    return [Batch(examples=tuple(ordered[i : i + batch_size])) for i in range(0, len(ordered), batch_size)]
