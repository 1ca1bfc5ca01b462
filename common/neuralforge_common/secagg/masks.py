"""Masks: the key stream of AES-256 in counter mode, added to a vector of words or taken away from it.

A key has 256 bits of entropy and serves one mask of one attempt at one round, so the counter may begin at zero. Two
clients derive the same key for the two of them: the one whose name comes first adds, the other one subtracts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from neuralforge_common.secagg.fixed_point import Words

_BLOCK_BYTES = 2**18
"""So much of the vector and of a key stream stay in a core's cache together."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A key, and whether its stream is added or taken away."""

    key: bytes
    adds: bool

    @property
    def undone(self) -> Mask:
        """What takes this mask off again."""
        return Mask(self.key, not self.adds)


def apply_masks(words: Words, masks: Sequence[Mask]) -> None:
    """Put all masks on `words` (count,), in place, modulo 2³² or 2⁶⁴."""
    streams = [Cipher(algorithms.AES256(mask.key), modes.CTR(bytes(16))).encryptor() for mask in masks]
    block = bytearray(_BLOCK_BYTES)
    zeros = bytes(_BLOCK_BYTES)
    stream = np.frombuffer(block, words.dtype)
    for begin in range(0, words.size, stream.size):
        part = words[begin : begin + stream.size]
        for mask, cipher in zip(masks, streams, strict=True):
            cipher.update_into(zeros[: part.nbytes], block)
            (np.add if mask.adds else np.subtract)(part, stream[: part.size], out=part)
