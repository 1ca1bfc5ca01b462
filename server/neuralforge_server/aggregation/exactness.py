"""How far what is served is from the average of what the clients trained: ‖served − avg(BA)‖ / ‖avg(BA)‖.

mean(B)·mean(A) is not mean(BA) (Singhal et al. 2024, "FedEx-LoRA", §3): what it misses is the covariance of the
clients' changes, avg(ΔB·ΔA) − avg(ΔB)·avg(ΔA). No product of the size of a base weight is ever formed here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_server.aggregation.exact_sum import TOGETHER, DoubleArray, ExactSum
from neuralforge_server.aggregation.halves import WORTH_IT, in_halves

_PROBES = 64
_MOST = 16


def product_norm(left: DoubleArray, right: DoubleArray) -> float:
    """‖left · right‖ (Frobenius) of (d_out, k) and (k, d_in), from the triangles of their QR: no cancellation."""
    return float(np.linalg.norm(_triangle(left) @ _triangle(right.T).T))


def _triangle(matrix: DoubleArray) -> DoubleArray:
    triangle: DoubleArray = np.linalg.qr(matrix, mode="r")  # type: ignore[assignment]  # numpy's stub forgets this mode
    return triangle


def relative(error: float, whole: float) -> float | None:
    """Error / whole; None where the whole is nothing, so that there is nothing to compare with."""
    return error / whole if whole > 0 else None


def rounding_error(layout: AdapterLayout, served: FloatArray, exact: DoubleArray) -> float | None:
    """The error of a method that is exact but for float32, where A or B alone was trained.

    `served` is (layout.size,) as it is served, `exact` the same before it was rounded.
    """
    squares = whole = 0.0
    for (_, a, b), (_, a_exact, b_exact) in zip(layout.factors(served), layout.factors(exact), strict=True):
        # One of the two differences is zero: (B + E)·A − B·A = E·A, exactly.
        a_difference, b_difference = a - a_exact, b - b_exact
        squares += _product_square(b_difference, a_exact) + _product_square(b_exact, a_difference)
        whole += _product_square(b_exact, a_exact)
    return relative(math.sqrt(squares), math.sqrt(whole))


def _product_square(left: DoubleArray, right: DoubleArray) -> float:
    """‖left · right‖² from two Gram matrices."""
    return max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))


class Sketch:
    """An estimate of the error of plain averaging, while updates stream by and none is kept.

    For random signs g, E ‖M·g‖² = ‖M‖² (Hutchinson 1990): of every module's covariance remains a vector ΔB·(ΔA·g) for
    each probe g, and those add up exactly. There are 64 probes in all, spread over the modules, at least one and at
    most 16 for each: the estimate is within about a tenth, for an adapter of one module within about a fifth.
    """

    def __init__(self, layout: AdapterLayout, *, seed: int = 0) -> None:
        self._layout = layout
        self._probes = min(_MOST, -(-_PROBES // len(layout.modules)))
        self._sum = ExactSum(sum(module.d_out for module in layout.modules) * self._probes)
        self._pending: list[tuple[FloatArray, int]] = []
        # Neighbours of one width are one matrix: fewer, larger products.
        self._runs_a = _runs(module.d_in for module in layout.modules)
        self._runs_b = _runs(module.d_out for module in layout.modules)
        self._signs: dict[int, FloatArray] = {}
        for width in sorted({module.d_in for module in layout.modules}):
            generator = np.random.Generator(np.random.Philox(key=[seed, width]))
            signs = generator.integers(0, 2, (self._probes, width), dtype=np.int8)
            self._signs[width] = 2 * signs.astype(np.float32) - 1

    def add(self, delta: FloatArray, weight: int) -> None:
        """Take in a delta of the whole adapter (layout.size,); a few are kept for a while, so do not write to it."""
        self._pending.append((delta, weight))
        if len(self._pending) == TOGETHER:
            self._flush()

    def error(self, averaged: FloatArray, mean: FloatArray) -> float | None:
        """The relative error of serving `averaged`, the start plus the mean delta `mean`, both (layout.size,)."""
        self._flush()
        covariance = self._sum.precise_mean() - self._products(mean)
        wanted = self._products(averaged) + covariance
        return relative(float(np.linalg.norm(covariance)), float(np.linalg.norm(wanted)))

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        found = [np.empty(0, np.float32)] * len(pending)

        def work(begin: int, end: int) -> None:
            for index in range(begin, end):
                found[index] = self._products(pending[index][0])

        in_halves(work, len(pending), even=1, worth_it=2 if self._layout.size >= WORTH_IT else len(pending) + 1)
        for products, (_, weight) in zip(found, pending, strict=True):
            self._sum.add(products, weight)

    def _products(self, vector: FloatArray) -> FloatArray:
        """B·(A·G) of every module in one vector."""
        layout, probes = self._layout, self._probes
        projected = np.empty((probes, len(layout.modules) * layout.rank), np.float32)
        products = np.empty((probes, self._sum.size // probes), np.float32)
        begin = row = 0
        for width, count in self._runs_a:
            rows, size = count * layout.rank, count * layout.rank * width
            matrix = vector[begin : begin + size].reshape(rows, width)
            for probe, signs in enumerate(self._signs[width]):  # one by one: BLAS is faster at several such than at all
                np.matmul(matrix, signs, out=projected[probe, row : row + rows])
            begin, row = begin + size, row + rows
        row = done = 0
        for height, count in self._runs_b:
            rows, size = count * layout.rank, count * layout.rank * height
            matrices = vector[begin : begin + size].reshape(count, height, layout.rank)
            for probe in range(probes):
                factors = projected[probe, row : row + rows].reshape(count, layout.rank, 1)
                produced = products[probe, done : done + count * height].reshape(count, height, 1)
                np.matmul(matrices, factors, out=produced)
            begin, row, done = begin + size, row + rows, done + count * height
        return products.reshape(-1)


def _runs(widths: Iterable[int]) -> list[tuple[int, int]]:
    """Equal neighbours counted: (width, how many)."""
    return [(width, sum(1 for _ in run)) for width, run in itertools.groupby(widths)]


def norm_of(values: npt.NDArray[np.floating]) -> float:
    """Euclidean norm in float64, whatever the type of the values."""
    return math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in _blocks(values)))


def _blocks(values: npt.NDArray[np.floating]) -> Iterable[npt.NDArray[np.floating]]:
    return (values[begin : begin + 2**16] for begin in range(0, values.size, 2**16))
