"""Gaussian noise that nobody can guess, and its addition so that no digit of what it hides shows through.

The bits are AES-256 in counter mode under a key and a start that the operating system gives anew for every call: there
is no state to copy with a process, to save, or to seed. The noise is theirs by Box & Muller (1958), two 64-bit words
for two values in float64; its tails reach 9.4 standard deviations.

A float is not a real number. The values that x + noise can take depend on the last digits of x, and Mironov 2012 ("On
Significance of the Least Significant Bits for Differential Privacy") tells neighbours apart by them. Summing several
draws (Holohan & Braghin 2021, "Secure Random Sampling in Differential Privacy") makes that costly to do; here there is
nothing left to see, as in Mironov's remedy: `add_noise` adds in float64 and rounds the sum to a grid of public width
between 2⁻²¹ and 2⁻²⁰ standard deviations. Rounding comes after the noise, so it costs no privacy, and each cell of
the grid holds some 2³² of the values that the noise can take, whatever x is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from neuralforge_common.errors import PrivacyError

Noise = Callable[[int], NDArray[np.float64]]
"""So many independent standard normal values."""

_PAIRS = 16384  # what a core's cache holds
_GRID_BITS = 20


def random_words(count: int) -> NDArray[np.uint64]:
    """Independent, uniform 64-bit words from a cryptographic source."""
    encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), dtype=np.uint64)


def standard_normal(count: int) -> NDArray[np.float64]:
    """Independent standard normal values from a cryptographic source; no two calls ever share a draw."""
    values = np.empty(count + count % 2)
    for first in range(0, count, 2 * _PAIRS):
        block = values[first : first + 2 * _PAIRS]
        pairs = len(block) // 2
        words = random_words(2 * pairs)
        # Half a unit above each word: never 0, whose logarithm would be infinite.
        radius = (words[:pairs].astype(np.float64) + 0.5) * 2.0**-64
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle = words[pairs:].astype(np.float64) * (2 * math.pi * 2.0**-64)
        np.multiply(radius, np.cos(angle), out=block[:pairs])
        np.multiply(radius, np.sin(angle), out=block[pairs:])
    return values[:count]


def add_noise(
    values: NDArray[np.floating], standard_deviation: float, *, noise: Noise = standard_normal
) -> NDArray[np.float32]:
    """`values` with noise of this deviation on every coordinate, on the grid, as float32.

    A value whose sum with the noise leaves ±8 deviations becomes a multiple of float32's own, coarser grid.

    Raises:
        PrivacyError: a deviation that is not a finite number ≥ 0 or is too small for float32, or a value that is not
            finite.
    """
    total = np.array(values, dtype=np.float64)
    if standard_deviation == 0:
        return total.astype(np.float32)
    if not (math.isfinite(standard_deviation) and standard_deviation >= 1e-30):
        raise PrivacyError(f"noise: wanted a finite standard deviation of at least 1e-30, got {standard_deviation:g}")
    if not np.isfinite(total).all():
        raise PrivacyError("noise: a value to be hidden is not finite, and noise hides no such value")
    total += standard_deviation * noise(total.size).reshape(total.shape)
    grid = 2.0 ** (math.floor(math.log2(standard_deviation)) - _GRID_BITS)
    # By a power of two: dividing and multiplying are exact, only `rint` rounds.
    total /= grid
    np.rint(total, out=total)
    total *= grid
    return total.astype(np.float32)
