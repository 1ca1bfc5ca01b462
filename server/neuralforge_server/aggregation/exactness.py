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
from neuralforge_server.aggregation.exact_sum import DoubleArray, ExactSum

_PROBES = 64
_MOST = 16


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
        # Neighbours of one width are multiplied in one call.
        self._runs_a = _runs(module.d_in for module in layout.modules)
        self._runs_b = _runs(module.d_out for module in layout.modules)
        self._signs: dict[int, FloatArray] = {}
        for width in sorted({module.d_in for module in layout.modules}):
            generator = np.random.Generator(np.random.Philox(key=[seed, width]))
            signs = generator.integers(0, 2, (self._probes, width), dtype=np.int8)
            self._signs[width] = 2 * signs.astype(np.float32) - 1

    def add(self, delta: FloatArray, weight: int) -> None:
        """Take in a delta of the whole adapter (layout.size,)."""
        self._sum.add(self._products(delta), weight)

    def error(self, averaged: FloatArray, mean: FloatArray) -> float | None:
        """The relative error of serving `averaged`, the start plus the mean delta `mean`, both (layout.size,)."""
        covariance = self._sum.precise_mean() - self._products(mean)
        wanted = self._products(averaged) + covariance
        return relative(float(np.linalg.norm(covariance)), float(np.linalg.norm(wanted)))

    def _products(self, vector: FloatArray) -> FloatArray:
        """B·(A·G) of every module in one vector."""
        layout, probes = self._layout, self._probes
        projected = np.empty((probes, len(layout.modules), layout.rank, 1), np.float32)
        products = np.empty((probes, self._sum.size // probes), np.float32)
        begin = first = 0
        for width, count in self._runs_a:
            size = count * layout.rank * width
            matrices = vector[begin : begin + size].reshape(count, layout.rank, width)
            # Vector by vector: BLAS takes longer for two at once than twice for one.
            for probe, signs in enumerate(self._signs[width]):
                np.matmul(matrices, signs[:, None], out=projected[probe, first : first + count])
            begin, first = begin + size, first + count
        first = done = 0
        for height, count in self._runs_b:
            size = count * layout.rank * height
            matrices = vector[begin : begin + size].reshape(count, height, layout.rank)
            for probe in range(probes):
                produced = products[probe, done : done + count * height].reshape(count, height, 1)
                np.matmul(matrices, projected[probe, first : first + count], out=produced)
            begin, first, done = begin + size, first + count, done + count * height
        return products.reshape(-1)


def _runs(widths: Iterable[int]) -> list[tuple[int, int]]:
    """Equal neighbours counted: (width, how many)."""
    return [(width, sum(1 for _ in run)) for width, run in itertools.groupby(widths)]


def norm_of(values: npt.NDArray[np.floating]) -> float:
    """Euclidean norm in float64, whatever the type of the values."""
    return math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in _blocks(values)))


def _blocks(values: npt.NDArray[np.floating]) -> Iterable[npt.NDArray[np.floating]]:
    return (values[begin : begin + 2**16] for begin in range(0, values.size, 2**16))
