"""Updates as whole numbers that can be added under masks: x ≈ resolution · q, and sums wrap around at 2^bits.

Every |q| ≤ `largest` = ⌊(2^(bits−1) − 1) / clients⌋, so the sum of so many clients' values never leaves the signed
range: what is decoded is the exact sum of what was encoded, whatever wrapped around on the way. A value is off by half
a resolution at most.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from neuralforge_common.adapter import MAX_STATE_BYTES, FloatArray
from neuralforge_common.errors import FederationError, TrainingError
from neuralforge_common.secagg.terms import MaskingTerms

Words: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
DoubleArray: TypeAlias = npt.NDArray[np.float64]

FINE = 1e-7
"""A resolution that keeps the error of an update with σ = 1e-4 below a thousandth of σ: half of it is 5e-8."""

# As in `wire`: magic, bits, zeros, count; 16 bytes, so that the words stay aligned.
_HEADER = struct.Struct("<4sB3sQ")
_MAGIC, _ZEROS = b"NFM1", bytes(3)
_WHOLE = 2**52
"""Whole numbers up to here, and their products with the resolution, are exact enough in a float64."""
_BLOCK = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """Values in ±`limit` for at most `clients` summands of `bits` bits each."""

    limit: float
    clients: int
    bits: Literal[32, 64]

    @classmethod
    def of(cls, terms: MaskingTerms) -> FixedPoint:
        """As a plan agrees on it."""
        return cls(limit=terms.limit, clients=terms.clients, bits=terms.bits)

    @property
    def largest(self) -> int:
        """The largest whole number that one client sends."""
        return min(((1 << (self.bits - 1)) - 1) // self.clients, _WHOLE)

    @property
    def resolution(self) -> float:
        """What one step of the whole numbers stands for."""
        return self.limit / self.largest

    @property
    def dtype(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """Of the words, little-endian."""
        return np.dtype("<u4") if self.bits == 32 else np.dtype("<u8")

    def encode(self, vector: FloatArray) -> Words:
        """Values (count,) as words; beyond the limit they are cut to it.

        Raises:
            TrainingError: a value is not finite.
        """
        words: Words = np.empty(vector.size, self.dtype)
        signed = words.view(f"<i{self.bits // 8}")
        for begin in range(0, vector.size, _BLOCK):
            part = vector[begin : begin + _BLOCK].astype(np.float64)
            if not np.isfinite(part).all():
                raise TrainingError("the update holds values that are not finite", hint="lower the learning rate")
            np.divide(part, self.resolution, out=part)
            np.clip(np.rint(part), -self.largest, self.largest, out=part)
            signed[begin : begin + _BLOCK] = part
        return words

    def decode(self, total: Words) -> DoubleArray:
        """A sum of words as the sum of values, float64 (count,)."""
        return total.view(f"<i{self.bits // 8}").astype(np.float64) * self.resolution


def pack(words: Words) -> bytes:
    """Words as bytes with a header."""
    return b"".join((_HEADER.pack(_MAGIC, 8 * words.itemsize, _ZEROS, words.size), words.data))


def packed_size(count: int, bits: int) -> int:
    """Bytes that `pack` makes of so many words."""
    return _HEADER.size + count * bits // 8


def unpack(data: bytes, *, count: int, form: FixedPoint) -> Words:
    """The words (count,) of exactly that form, not to be written to.

    Raises:
        FederationError: another magic, width, count or length.
    """
    wanted = packed_size(count, form.bits)
    if len(data) != wanted or wanted > _HEADER.size + 2 * MAX_STATE_BYTES:
        raise FederationError(f"wanted {wanted:,} bytes ({count:,} masked values), got {len(data):,}")
    magic, bits, zeros, stated = _HEADER.unpack_from(data)
    if (magic, bits, zeros, stated) != (_MAGIC, form.bits, _ZEROS, count):
        raise FederationError("the masked update does not begin as one does")
    return cast(Words, np.frombuffer(memoryview(data)[_HEADER.size :], dtype=form.dtype))
