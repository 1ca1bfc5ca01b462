"""A flat float32 vector ↔ bytes: exact, halved, or quartered. Nothing the bytes say is believed before it is checked.

    NFW1 | format (1 byte) | 3 zero bytes | count (8 bytes, little-endian) | body

    fp32   count float32
    fp16   count float16; values beyond ±65,504 are refused when written
    int8   one float32 scale for each block of 256 values, then count int8: x ≈ scale · q, |error| ≤ scale / 2

What int8 leaves out is not lost: a client adds it to its next delta (error feedback, Seide et al. 2014; Karimireddy
et al. 2019, "Error Feedback Fixes SignSGD").
"""

from __future__ import annotations

import struct
from typing import Literal, TypeAlias, get_args

import numpy as np

from neuralforge_common.adapter import MAX_STATE_BYTES, FloatArray
from neuralforge_common.errors import AdapterError

WireFormat: TypeAlias = Literal["fp32", "fp16", "int8"]

BLOCK = 256
# 16 bytes, so that the values of a payload stay aligned where its bytes are.
_HEADER = struct.Struct("<4sB3sQ")
_MAGIC = b"NFW1"
_ZEROS = bytes(3)
_CODES: dict[WireFormat, int] = {"fp32": 0, "fp16": 1, "int8": 2}


def encoded_size(count: int, wire: WireFormat) -> int:
    """Bytes that `count` values take, header included."""
    body = {"fp32": 4 * count, "fp16": 2 * count, "int8": 4 * -(-count // BLOCK) + count}[wire]
    return _HEADER.size + body


def encode(vector: FloatArray, wire: WireFormat) -> bytes:
    """A vector (count,) as bytes.

    Raises:
        AdapterError: a value that is not finite, or beyond what the format holds.
    """
    if not np.isfinite(vector).all():
        raise AdapterError("the delta holds values that are not finite", hint="lower the learning rate")
    header = _HEADER.pack(_MAGIC, _CODES[wire], _ZEROS, vector.size)
    if wire == "fp32":
        return header + vector.astype("<f4", copy=False).tobytes()
    if wire == "fp16":
        if np.abs(vector).max(initial=0.0) > np.finfo(np.float16).max:
            raise AdapterError("the delta holds values beyond ±65,504, which fp16 cannot carry")
        return header + vector.astype("<f2").tobytes()
    blocks = _blocks(vector)
    # A scale that rounds to zero in float32 would divide by it: such blocks carry zeros.
    scales = (np.abs(blocks).max(axis=1) / np.float32(127)).astype(np.float32)
    safe = np.where(scales > 0, scales, np.float32(1))
    quantised = np.clip(np.rint(blocks / safe[:, None]), -127, 127).astype(np.int8)
    quantised[scales == 0] = 0
    body = scales.astype("<f4").tobytes(), quantised.reshape(-1)[: vector.size].tobytes()
    return b"".join((header, *body))


def decode(data: bytes | memoryview, *, count: int, wire: WireFormat) -> FloatArray:
    """The vector (count,) that `data` holds in that format, and in no other.

    Raises:
        AdapterError: another magic, format, count or length.
    """
    if len(data) != encoded_size(count, wire):
        raise AdapterError(f"wanted {encoded_size(count, wire):,} bytes ({count:,} values, {wire}), got {len(data):,}")
    magic, code, zeros, stated = _HEADER.unpack_from(data)
    if magic != _MAGIC or zeros != _ZEROS:
        raise AdapterError("the delta does not begin as a delta does")
    if code != _CODES[wire]:
        got = next((name for name in get_args(WireFormat) if _CODES[name] == code), f"format {code}")
        raise AdapterError(f"wanted the wire format {wire}, got {got}")
    if stated != count or 4 * count > MAX_STATE_BYTES:
        raise AdapterError(f"wanted {count:,} values, the header says {stated:,}")
    body = memoryview(data)[_HEADER.size :]
    if wire == "fp32":
        return np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)
    if wire == "fp16":
        with np.errstate(invalid="ignore"):  # a signalling NaN is for the caller to find, like any other
            return np.frombuffer(body, dtype="<f2").astype(np.float32)
    blocks = -(-count // BLOCK)
    scales = np.frombuffer(body[: 4 * blocks], dtype="<f4")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise AdapterError("the delta holds a scale that no block of values has")
    values: FloatArray = _blocks(np.frombuffer(body[4 * blocks :], dtype=np.int8).astype(np.float32))
    with np.errstate(over="ignore"):  # an infinity is for the caller to find, as in the other formats
        np.multiply(values, scales[:, None], out=values)
    return values.reshape(-1)[:count]


def _blocks(vector: FloatArray) -> FloatArray:
    """The vector as rows of `BLOCK` values, the last one filled with zeros."""
    rows = -(-vector.size // BLOCK)
    if rows * BLOCK == vector.size:
        return vector.reshape(rows, BLOCK)
    padded = np.zeros(rows * BLOCK, np.float32)
    padded[: vector.size] = vector
    return padded.reshape(rows, BLOCK)
