"""One decoder layer of the Llama family: attention and SwiGLU behind RMS norms, with LoRA on any projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import torch

from neuralforge.training.fast.attention import Heads, SavedAttention, attend, attend_backward
from neuralforge.training.fast.elementwise import rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward
from neuralforge.training.fast.linear import FrozenLinear
from neuralforge.training.fast.lora import LoraGroup, SavedLora, Share, Shares
from neuralforge.training.fast.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What every layer shares in one pass: layout, rotary tables (M, 1, D/2), masks by width."""

    rows: Rows
    cos: torch.Tensor
    sin: torch.Tensor
    masks: Mapping[int, torch.Tensor]
    dropout_seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenLayer:
    """A layer's frozen parts; `…_back` map output gradients to input gradients."""

    index: int
    heads: Heads
    eps: float
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    qkv: FrozenLinear
    out: FrozenLinear
    gate_up: FrozenLinear
    down: FrozenLinear
    qkv_back: FrozenLinear
    out_back: FrozenLinear
    gate_up_back: FrozenLinear
    down_back: FrozenLinear


@dataclass(slots=True, kw_only=True)
class SavedLayer:
    """What backward needs. From `out` on, only the rows that have a gradient there."""

    x: torch.Tensor
    x_inverse: torch.Tensor
    h: torch.Tensor
    attention: list[SavedAttention]
    out: torch.Tensor
    x2: torch.Tensor
    x2_inverse: torch.Tensor
    h2: torch.Tensor
    gate_up: torch.Tensor
    act: torch.Tensor
    lora: dict[str, SavedLora] = field(default_factory=dict)


class Layer:
    """Forward and backward of one layer; LoRA groups are named qkv, out, gate_up and down."""

    def __init__(self, frozen: FrozenLayer, groups: Mapping[str, LoraGroup]) -> None:
        self._f = frozen
        self.groups = groups

    @overload
    def forward(
        self, x: torch.Tensor, p: Pass, *, keep: Literal[True], rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SavedLayer]: ...
    @overload
    def forward(
        self, x: torch.Tensor, p: Pass, *, keep: bool, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SavedLayer | None]: ...
    def forward(
        self, x: torch.Tensor, p: Pass, *, keep: bool, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SavedLayer | None]:
        """X (M, d) -> x of the next layer, (M, d) or (N, d) where only `rows` are wanted, as of the last layer."""
        f = self._f
        lora: dict[str, SavedLora] = {}
        h, x_inverse = rms_norm(x, f.attention_norm, f.eps)
        qkv = self._project("qkv", f.qkv, h, lora, p)
        queries, turned = f.heads.queries * f.heads.width, (f.heads.queries + f.heads.keys) * f.heads.width
        qk = qkv.new_empty(len(x), turned)
        rotate(qkv[:, :turned], p.cos, p.sin, qk)
        out = x.new_empty(len(x), queries)
        attention = []
        for group in p.rows.groups:
            grid, saved = attend(
                qk[:, :queries], qk[:, queries:], qkv[:, turned:], group, f.heads, p.masks[group.width]
            )
            group.from_grid(grid, out)
            if keep:
                attention.append(saved)
        residual = x
        if rows is not None:
            out, residual = out[rows], x[rows]
        x2 = self._project("out", f.out, out, lora, p).add_(residual)
        h2, x2_inverse = rms_norm(x2, f.mlp_norm, f.eps)
        gate_up = self._project("gate_up", f.gate_up, h2, lora, p)
        act = swiglu(gate_up)
        result = self._project("down", f.down, act, lora, p).add_(x2)
        if not keep:
            return result, None
        return result, SavedLayer(
            x=x,
            x_inverse=x_inverse,
            h=h,
            attention=attention,
            out=out,
            x2=x2,
            x2_inverse=x2_inverse,
            h2=h2,
            gate_up=gate_up,
            act=act,
            lora=lora,
        )

    def backward(
        self,
        d_x: torch.Tensor,
        saved: SavedLayer,
        p: Pass,
        shares: Shares,
        *,
        need_input: bool,
        rows: torch.Tensor | None = None,
        narrow: bool = False,
    ) -> torch.Tensor | None:
        """Add LoRA's gradients to the vectors of `shares`; d_x of the output -> d_x of the input, or None.

        `rows`: the rows that d_x holds, None for all. `narrow` passes on only those rows: what context tokens
        would have taken through their own residual stream is left out, an approximation that is an option.
        """
        f = self._f
        # From `out` on, only rows that have a gradient were kept.
        mine = shares.every if rows is None else shares.predicting
        sides = shares.sides
        d_act = f.down_back(d_x)
        self._learn("down", d_x, saved.act, saved, mine, d_act, sides=sides)
        d_gate_up = swiglu_backward(d_act, saved.gate_up)
        d_h2 = f.gate_up_back(d_gate_up)
        self._learn("gate_up", d_gate_up, saved.h2, saved, mine, d_h2, sides=sides)
        d_x = rms_norm_backward(d_h2, saved.x2, saved.x2_inverse, f.mlp_norm, d_x)
        if not need_input and "qkv" not in self.groups:
            self._learn("out", d_x, saved.out, saved, mine, None, sides=sides)
            return None
        d_out = f.out_back(d_x)
        self._learn("out", d_x, saved.out, saved, mine, d_out, sides=sides)
        total = len(saved.h)
        if rows is not None:
            d_out = d_out.new_zeros(total, d_out.shape[1]).index_copy_(0, rows, d_out)
        d_qkv = self._attention_backward(d_out, saved, p)
        kept = rows if narrow else None
        d_h = None
        if need_input:
            d_h = f.qkv_back(d_qkv if kept is None else d_qkv[kept])
        self._learn("qkv", d_qkv, saved.h, saved, shares.every, d_h, kept, sides=sides)
        if d_h is None:
            return None
        if rows is not None and not narrow:
            d_x = d_x.new_zeros(total, d_x.shape[1]).index_copy_(0, rows, d_x)
        x, inverse = (saved.x, saved.x_inverse) if kept is None else (saved.x[kept], saved.x_inverse[kept])
        return rms_norm_backward(d_h, x, inverse, f.attention_norm, d_x)

    def _attention_backward(self, d_out: torch.Tensor, saved: SavedLayer, p: Pass) -> torch.Tensor:
        heads = self._f.heads
        queries, turned = heads.queries * heads.width, (heads.queries + heads.keys) * heads.width
        d_turned = d_out.new_empty(len(d_out), turned)
        d_qkv = d_out.new_empty(len(d_out), turned + heads.keys * heads.width)
        for group, attention in zip(p.rows.groups, saved.attention, strict=True):
            d_q, d_k, d_v = attend_backward(d_out, attention, group, heads, p.masks[group.width])
            group.from_grid(d_q, d_turned[:, :queries])
            group.from_grid(d_k, d_turned[:, queries:])
            group.from_grid(d_v, d_qkv[:, turned:])
        rotate(d_turned, p.cos, p.sin, d_qkv[:, :turned], back=True)
        return d_qkv

    def _project(
        self, name: str, frozen: FrozenLinear, x: torch.Tensor, lora: dict[str, SavedLora], p: Pass
    ) -> torch.Tensor:
        y = frozen(x)
        if name in self.groups:
            lora[name] = self.groups[name].forward(x, y, self._generator(name, p))
        return y

    def _learn(
        self,
        name: str,
        d_y: torch.Tensor,
        x: torch.Tensor,
        saved: SavedLayer,
        shares: Sequence[Share],
        d_x: torch.Tensor | None,
        rows: torch.Tensor | None = None,
        *,
        sides: str,
    ) -> None:
        if name in self.groups:
            self.groups[name].backward(d_y, x, saved.lora[name], shares, d_x, rows, sides=sides)

    def _generator(self, name: str, p: Pass) -> torch.Generator | None:
        # Seeded by place, so that a recomputed forward draws the same mask.
        if p.dropout_seed is None:
            return None
        place = 4 * self._f.index + ("qkv", "out", "gate_up", "down").index(name)
        return torch.Generator().manual_seed((p.dropout_seed * 1_000_003 + place) % 2**63)
