"""Causal grouped-query attention by batched matmul, forward and backward.

On this kind of CPU bf16 `scaled_dot_product_attention` was four times slower than the matmuls it stands for
(docs/performance.md), and its backward cannot reuse the probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralforge.training.fast.rows import AttentionGroup

KEEP_PROBABILITIES_WIDTH = 512
"""Up to this many tokens the probabilities are kept for backward; beyond, memory matters more than one matmul."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, key-value heads and their width."""

    queries: int
    keys: int
    width: int

    @property
    def shared(self) -> int:
        """Query heads for each key-value head."""
        return self.queries // self.keys


@dataclass(slots=True)
class SavedAttention:
    """What backward needs of one group: q (n·KV, G·T, D), k, v (n·KV, T, D), o like q, probabilities or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    probabilities: torch.Tensor | None


def causal_mask(width: int, shared: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (1, G·T, T): no token sees a later one. Holes of a grid come later than all its tokens."""
    mask = torch.full((width, width), float("-inf"), dtype=dtype).triu_(1)
    return mask.repeat(shared, 1)[None]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: AttentionGroup, heads: Heads, mask: torch.Tensor
) -> tuple[torch.Tensor, SavedAttention]:
    """Q (M, H·D), k and v (M, KV·D) after rotation -> the group's grid of outputs (n, T, H·D)."""
    queries, keys, values = _queries(q, group, heads), _keys(k, group, heads), _keys(v, group, heads)
    probabilities = _probabilities(queries, keys, heads, mask)
    out = torch.bmm(probabilities, values)
    kept = probabilities if group.width <= KEEP_PROBABILITIES_WIDTH else None
    return _from_queries(out, group, heads), SavedAttention(queries, keys, values, out, kept)


def attend_backward(
    d_out: torch.Tensor, saved: SavedAttention, group: AttentionGroup, heads: Heads, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """d_out (M, H·D) -> gradients of q, k, v as grids (n, T, H·D), (n, T, KV·D), (n, T, KV·D)."""
    d = _queries(d_out, group, heads)
    probabilities = saved.probabilities
    if probabilities is None:
        probabilities = _probabilities(saved.q, saved.k, heads, mask)
    d_v = torch.bmm(probabilities.transpose(1, 2), d)
    d_scores = torch.bmm(d, saved.v.transpose(1, 2))
    # softmax backward: dS = P ∘ (dP − rowsum(dO ∘ O))
    d_scores.sub_((d * saved.o).sum(-1, keepdim=True, dtype=torch.float32).to(d.dtype)).mul_(probabilities)
    scale = heads.width**-0.5
    d_q = torch.bmm(d_scores, saved.k).mul_(scale)
    d_k = torch.bmm(d_scores.transpose(1, 2), saved.q).mul_(scale)
    return _from_queries(d_q, group, heads), _from_keys(d_k, group, heads), _from_keys(d_v, group, heads)


def _probabilities(q: torch.Tensor, k: torch.Tensor, heads: Heads, mask: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=heads.width**-0.5), dim=-1)


def _queries(rows: torch.Tensor, group: AttentionGroup, heads: Heads) -> torch.Tensor:
    grid = group.to_grid(rows).view(group.count, group.width, heads.keys, heads.shared, heads.width)
    return grid.permute(0, 2, 3, 1, 4).reshape(group.count * heads.keys, heads.shared * group.width, heads.width)


def _from_queries(x: torch.Tensor, group: AttentionGroup, heads: Heads) -> torch.Tensor:
    grid = x.view(group.count, heads.keys, heads.shared, group.width, heads.width).permute(0, 3, 1, 2, 4)
    return grid.reshape(group.count, group.width, heads.queries * heads.width)


def _keys(rows: torch.Tensor, group: AttentionGroup, heads: Heads) -> torch.Tensor:
    grid = group.to_grid(rows).view(group.count, group.width, heads.keys, heads.width)
    return grid.permute(0, 2, 1, 3).reshape(group.count * heads.keys, group.width, heads.width)


def _from_keys(x: torch.Tensor, group: AttentionGroup, heads: Heads) -> torch.Tensor:
    grid = x.view(group.count, heads.keys, group.width, heads.width).permute(0, 2, 1, 3)
    return grid.reshape(group.count, group.width, heads.keys * heads.width)
