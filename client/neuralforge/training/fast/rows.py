"""How the samples of a batch lie in memory: one row a token, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample

ALIKE = 0.75
"""Samples whose lengths differ by no more than this factor attend in one padded batch of matmuls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGroup:
    """Samples of like length, rows `first` to `last`, attended together on a grid of `count` × `width` places.

    `places` says where each row stands on the grid, None where the grid has no holes.
    """

    first: int
    last: int
    count: int
    width: int
    places: torch.Tensor | None

    def to_grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (M, …) of the whole batch -> this group's grid (count, width, …), zeros in the holes."""
        mine = rows[self.first : self.last]
        if self.places is None:
            return mine.reshape(self.count, self.width, *mine.shape[1:])
        grid = mine.new_zeros(self.count * self.width, *mine.shape[1:])
        grid.index_copy_(0, self.places, mine)
        return grid.view(self.count, self.width, *mine.shape[1:])

    def from_grid(self, grid: torch.Tensor, out: torch.Tensor) -> None:
        """Write the grid (count, width, …) back to this group's rows of `out` (M, …)."""
        flat = grid.reshape(self.count * self.width, *grid.shape[2:])
        out[self.first : self.last] = flat if self.places is None else flat[self.places]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A batch laid out: samples sorted by length, their tokens one after the other.

    `tokens`, `positions`: (M,); `predicting`: rows whose next token counts, (N,); `targets`: those tokens, (N,). Of
    each sample: `order`, its place in the batch; `extents`, its rows among the M; `spans`, its targets among the N.
    """

    examples: tuple[TokenizedExample, ...]
    order: tuple[int, ...]
    extents: tuple[slice, ...]
    spans: tuple[slice, ...]
    tokens: torch.Tensor
    positions: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    groups: tuple[AttentionGroup, ...]


def lay_out(batch: Batch, *, alike: float = ALIKE) -> Rows:
    """Concatenate the samples of a batch and note what attention and loss must know.

    At `alike` 1 only samples of one length attend together: none is padded, so its values do not depend on another's
    length, not even in their rounding.
    """
    given = batch.examples
    order = tuple(sorted(range(len(given)), key=lambda i: (len(given[i].tokens), given[i].index)))
    examples = tuple(given[i] for i in order)
    lengths = [len(e.tokens) for e in examples]
    extents = _consecutive(lengths)
    starts = [extent.start for extent in extents]
    predicting = [
        np.arange(first + e.start - 1, first + len(e.tokens) - 1) for first, e in zip(starts, examples, strict=True)
    ]
    return Rows(
        examples=examples,
        order=order,
        extents=extents,
        spans=_consecutive([e.targets for e in examples]),
        tokens=torch.from_numpy(np.concatenate([np.asarray(e.tokens, dtype=np.int64) for e in examples])),
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        predicting=torch.from_numpy(np.concatenate(predicting)),
        targets=torch.from_numpy(np.concatenate([np.asarray(e.tokens[e.start :], dtype=np.int64) for e in examples])),
        groups=_groups(lengths, starts, alike),
    )


def _consecutive(lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True))


def _groups(lengths: Sequence[int], starts: Sequence[int], alike: float) -> tuple[AttentionGroup, ...]:
    groups = []
    end = len(lengths)
    while end:
        width = lengths[end - 1]
        begin = end - 1
        while begin and lengths[begin - 1] >= alike * width:
            begin -= 1
        members = lengths[begin:end]
        places = None
        if members[0] != width:
            places = torch.from_numpy(np.concatenate([np.arange(n) + i * width for i, n in enumerate(members)]))
        groups.append(
            AttentionGroup(
                first=starts[begin],
                last=starts[end - 1] + width,
                count=end - begin,
                width=width,
                places=places,
            )
        )
        end = begin
    return tuple(reversed(groups))
