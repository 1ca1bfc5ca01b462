"""A sum of many thin products as one thin product, without ever forming the wide one.

B·A with B (d_out, k) and A (k, d_in): thin QR of both leaves a core of at most k × k, whose singular value
decomposition is that of the product (the recompression of low-rank arithmetic; Bebendorf 2008, "Hierarchical
Matrices", §1.1.3). Components come out with the largest singular value first and √σ on both sides, so that a client of
a lower rank, which takes the first ones, holds the best approximation of its rank.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

DoubleArray: TypeAlias = npt.NDArray[np.float64]


def refactor(left: DoubleArray, right: DoubleArray, rank: int) -> tuple[DoubleArray, DoubleArray]:
    """The best B (d_out, rank) and A (rank, d_in) for left (d_out, k) · right (k, d_in), in float64.

    Exact where the product's rank is at most `rank`; components that the product does not have are zero.
    """
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, sigma, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    # Below this the singular values are the rounding of those above, and their vectors mean nothing.
    floor = (sigma[0] if sigma.size else 0.0) * np.finfo(np.float64).eps * max(left_core.shape[0], right_core.shape[0])
    kept = min(rank, int(np.count_nonzero(sigma > floor)))
    root = np.sqrt(sigma[:kept])
    b = np.zeros((left.shape[0], rank))
    a = np.zeros((rank, right.shape[1]))
    b[:, :kept] = (left_basis @ u[:, :kept]) * root
    a[:kept] = root[:, None] * (v[:kept] @ right_basis.T)
    # A decomposition is unique but for signs: the largest value of every column of B is positive.
    largest = np.argmax(np.abs(b), axis=0)
    signs = np.where(b[largest, np.arange(rank)] < 0, -1.0, 1.0)
    return b * signs, a * signs[:, None]


def product_norm(left: DoubleArray, right: DoubleArray) -> float:
    """‖left · right‖ (Frobenius) of (d_out, k) and (k, d_in), from the triangles of their QR: no cancellation."""
    return float(np.linalg.norm(_triangle(left) @ _triangle(right.T).T))


def _triangle(matrix: DoubleArray) -> DoubleArray:
    triangle: DoubleArray = np.linalg.qr(matrix, mode="r")  # type: ignore[assignment]  # numpy's stub forgets this mode
    return triangle
