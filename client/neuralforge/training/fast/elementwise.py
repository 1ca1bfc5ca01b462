"""The small maps between matmuls, each with its backward: RMS norm, rotary embedding, SwiGLU."""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (M, d) normalised (Zhang & Sennrich 2019) -> (output, reciprocal root mean square (M, 1))."""
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).square_()
    inverse = square.mul_(1 / x.shape[1]).add_(eps).rsqrt_().to(x.dtype)
    return (x * inverse).mul_(weight), inverse


def rms_norm_backward(
    d_out: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor, d_x: torch.Tensor
) -> torch.Tensor:
    """Add to `d_x` the gradient with respect to x; `d_out` is used up."""
    d_hat = d_out.mul_(weight)
    x_hat = x * inverse
    mean = (d_hat * x_hat).sum(1, keepdim=True, dtype=torch.float32).mul_(-1 / x.shape[1]).to(x.dtype)
    return d_x.addcmul_(d_hat.addcmul_(x_hat, mean), inverse)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, back: bool = False) -> None:
    """Rotary embedding (Su et al. 2021) of rows (M, heads·D) into `out`; cos and sin are (M, 1, D/2).

    `back` turns the other way, which is the gradient's way.
    """
    half = cos.shape[-1]
    source, target = x.view(len(x), -1, 2, half), out.view(len(x), -1, 2, half)
    first, second = source[:, :, 0], source[:, :, 1]
    sign = -1 if back else 1
    torch.mul(first, cos, out=target[:, :, 0])
    target[:, :, 0].addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=target[:, :, 1])
    target[:, :, 1].addcmul_(first, sin, value=sign)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up for rows (M, 2·I) that hold gate, then up (Shazeer 2020)."""
    gate, up = gate_up.chunk(2, dim=1)
    return functional.silu(gate).mul_(up)


def swiglu_backward(d_out: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """Gradient (M, 2·I) with respect to gate and up; `d_out` is used up."""
    gate, up = gate_up.chunk(2, dim=1)
    d = torch.empty_like(gate_up)
    d_gate, d_up = d.chunk(2, dim=1)
    torch.mul(functional.silu(gate), d_out, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_out.mul_(up), gate, grad_input=d_gate)
    return d
