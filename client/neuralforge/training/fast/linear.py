"""Frozen linear maps: bf16 or fp32 as they are, or int8 by oneDNN."""

from __future__ import annotations

from typing import Protocol

import torch

QUANTIZE_ROWS = 1024
"""Rows that oneDNN's prepacking is tuned for; other counts work, a little slower."""


class FrozenLinear(Protocol):
    """y = x Wᵀ + b for rows x (M, d_in); W never learns."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (M, d_in) to rows (M, d_out)."""
        ...


class DenseLinear:
    """The weight (d_out, d_in) as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._transposed = weight.t()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (M, d_in) to rows (M, d_out)."""
        if self._bias is None:
            return x @ self._transposed
        return torch.addmm(self._bias, x, self._transposed)


class Int8Linear:
    """Weight in int8 with a scale for each output, rows of x in int8 with a scale for each row.

    oneDNN wants unsigned activations: x is shifted by 128, the zero point takes the shift back.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        exact = weight.float()
        self._scale = exact.abs().amax(1).clamp_(min=1e-8).div_(127)
        rounded = exact.div_(self._scale[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, [QUANTIZE_ROWS, weight.shape[1]])
        self._zero_point = torch.zeros(weight.shape[0], dtype=torch.int32)
        self._bias = bias
        self._dtype = weight.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (M, d_in) to rows (M, d_out)."""
        x = x.contiguous()
        # 126, not 127: bf16 rounding of the scale must not push a value past the range.
        inverse = 126 / torch.linalg.vector_norm(x, ord=float("inf"), dim=1, keepdim=True).clamp_(min=1e-20)
        shifted = (x * inverse).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(128)
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, self._packed, self._scale, self._zero_point, None, 1.0, 0, self._dtype, "none", [], ""
        )
        y.mul_(inverse.reciprocal_())
        return y if self._bias is None else y.add_(self._bias)
