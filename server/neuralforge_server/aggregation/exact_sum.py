"""Weighted sums of float32 vectors that come out the same, to the last bit, in whatever order the vectors come.

Floating-point addition is not associative; that of whole numbers is. Each w·x (exact in float64) is rounded once, by
itself, to a whole multiple of a grid 2⁻ᵏ, and those multiples are added as int64. The rounding costs one addition:
w·x + 1.5·2^(52−k) is a float64 whose lowest bit weighs 2⁻ᵏ, so the bits of such numbers, read as int64, differ by
exactly the multiple (Knuth's and Dekker's magic number; compare Demmel & Nguyen 2013, "Fast Reproducible
Floating-Point Summation", whose bins these bands are). Whole-number arithmetic wraps around, so the bits of the magic
number itself are taken off once, at the end.

The grid depends on the vector alone, never on who came before: vectors are sorted into bands of 16 binary orders of
magnitude by their own max |w·x| (or norm), each band with its own grid and accumulator. An honest round fills one or
two bands; a hostile one at most six. What rounding leaves out of a value is below 2⁻³⁵ of the vector's largest (or of
its norm): even over millions of values less than float32 leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_server.aggregation.walk import BLOCK, Walk

DoubleArray: TypeAlias = npt.NDArray[np.float64]

MAX_WEIGHT = 2**28
"""24 bits of a float32 times 28 of a weight fit into the 53 of a float64."""

_LOWEST, _HIGHEST, _WIDTH = -32, 48, 16
_NORM_SLACK = 1.001
_TOGETHER = 4
"""Vectors that are added in one walk over the accumulator, which is twice as large as they are."""


@dataclass(slots=True)
class _Band:
    """Vectors with max |w·x| < 2^top: their bits, and how many magic numbers stand in them."""

    top: int
    bits: npt.NDArray[np.int64]
    terms: int = 0
    filled: float = 0.0

    @property
    def magic(self) -> float:
        return math.ldexp(1.5, self.top + 1)

    @property
    def grid(self) -> float:
        return math.ldexp(1.0, self.top - 51)

    @property
    def surplus(self) -> np.int64:
        """The bits of all magic numbers, as they stand in an accumulator that wraps around."""
        surplus = self.terms * int(np.float64(self.magic).view(np.int64)) % 2**64
        return np.int64(surplus - 2**64 if surplus >= 2**63 else surplus)


class ExactSum:
    """Σ wᵢ·xᵢ of float32 vectors (size,) with whole weights; memory does not grow with their number."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.total_weight = 0
        self._bands: dict[int, _Band] = {}
        self._pending: list[tuple[FloatArray, int, _Band]] = []
        self._walk: Walk | None = None
        self._spare: list[DoubleArray] = []

    def add(self, values: FloatArray, weight: int = 1, *, norm: float | None = None) -> None:
        """Add weight·values: a few vectors at a time, in threads beside, so do not write to them afterwards.

        `norm` is the Euclidean norm of the values, to float32's precision, where the caller has measured it.

        Raises:
            FederationError: another size or type, a weight out of bounds, values that are not finite or so large that
                the sum would not be exact. Nothing was added then.
        """
        if values.shape != (self.size,) or values.dtype != np.float32:
            raise FederationError(f"wanted {self.size:,} float32 values, got {values.shape} of {values.dtype}")
        if not 1 <= weight <= MAX_WEIGHT:
            raise FederationError(f"wanted a weight from 1 to {MAX_WEIGHT:,}, got {weight}")
        # No value is larger than the norm, and a NaN comes through both.
        if norm is None:
            largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0))) * weight
        else:
            largest = norm * _NORM_SLACK * weight
        if not largest < 2.0**_HIGHEST:
            raise FederationError(f"values as large as {largest:g} cannot be added up exactly")
        band = self._band(largest)
        if band.filled + largest + band.grid >= math.ldexp(1.0, band.top + 11):
            raise FederationError(f"{band.terms:,} updates of such weight are as many as can be added up exactly")
        band.filled += largest + band.grid
        band.terms += 1
        self.total_weight += weight
        self._pending.append((values, weight, band))
        if len(self._pending) == _TOGETHER:
            self._begin_walk()

    def mean(self) -> FloatArray:
        """The weighted mean, rounded to float32; raises FederationError where nothing was added."""
        mean = np.empty(self.size, np.float32)
        self._read(mean)
        return mean

    def precise_mean(self) -> DoubleArray:
        """The weighted mean in float64; raises FederationError where nothing was added."""
        mean = np.empty(self.size)
        self._read(mean)
        return mean

    def _band(self, largest: float) -> _Band:
        exponent = math.frexp(largest)[1] if largest > 0 else _LOWEST
        top = max(_LOWEST, -(-exponent // _WIDTH) * _WIDTH)
        if top not in self._bands:
            self._bands[top] = _Band(top, np.zeros(self.size, np.int64))
        return self._bands[top]

    def _begin_walk(self) -> None:
        self._end_walk()
        pending, self._pending = self._pending, []
        self._walk = Walk(lambda begin, end: self._add_up(pending, begin, end), self.size)

    def _end_walk(self) -> None:
        if self._walk is not None:
            self._walk.finish()
            self._walk = None

    def _add_up(self, pending: list[tuple[FloatArray, int, _Band]], begin: int, end: int) -> None:
        # Every vector is read from memory once, the accumulator once for a few of them.
        scratch = self._borrow()
        products = scratch[: end - begin]
        whole = products.view(np.int64)
        for values, weight, band in pending:
            np.copyto(products, values[begin:end])
            if weight != 1:
                np.multiply(products, float(weight), out=products)
            np.add(products, band.magic, out=products)
            bits = band.bits[begin:end]
            np.add(bits, whole, out=bits)
        self._spare.append(scratch)

    def _read(self, mean: npt.NDArray[Any]) -> None:
        if not self.total_weight:
            raise FederationError("no update was added: there is no mean")
        self._begin_walk()
        self._end_walk()
        Walk(lambda begin, end: self._read_block(mean, begin, end), self.size).finish()

    def _read_block(self, mean: npt.NDArray[Any], begin: int, end: int) -> None:
        scratch = [self._borrow() for _ in range(3)]
        multiples, values, total = scratch[0][: end - begin].view(np.int64), *(s[: end - begin] for s in scratch[1:])
        total.fill(0)
        for top in sorted(self._bands):  # the smallest first, always in this order
            band = self._bands[top]
            np.subtract(band.bits[begin:end], band.surplus, out=multiples)
            np.copyto(values, multiples)
            np.multiply(values, band.grid, out=values)
            np.add(total, values, out=total)
        np.divide(total, self.total_weight, out=total)
        mean[begin:end] = total
        self._spare.extend(scratch)

    def _borrow(self) -> DoubleArray:
        """A block of memory that no other thread uses; made anew it would cost more than the work in it."""
        return self._spare.pop() if self._spare else np.empty(min(BLOCK, self.size))
