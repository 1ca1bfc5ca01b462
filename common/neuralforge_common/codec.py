"""Tensors ↔ safetensors bytes; reading believes nothing that the bytes say before it has checked it.

Format: 8 bytes little-endian header length, a JSON header `{name: {dtype, shape, data_offsets: [begin, end]}}`, the
data (https://github.com/huggingface/safetensors). Written by the safetensors library; read here, because the library's
numpy half knows no bfloat16 and because every bound must hold before memory is spent.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save

from neuralforge_common.adapter import MAX_STATE_BYTES, FloatArray
from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import parse_json_object, shortened

MAX_HEADER_BYTES = 8 * 2**20

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|PK\x05\x06")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encode_tensors(tensors: Mapping[str, FloatArray]) -> bytes:
    """Float32 arrays as safetensors bytes; equal arrays give equal bytes."""
    # The one metadata key that transformers and PEFT look for; more than one would come out in random order.
    return save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}, metadata={"format": "pt"})


def decode_tensors(
    file: BinaryIO,
    size: int,
    *,
    what: str,
    check_shapes: Callable[[Mapping[str, tuple[int, ...]]], None] = lambda shapes: None,
) -> tuple[dict[str, FloatArray], str]:
    """Reads safetensors of float32, float16 or bfloat16 as float32 arrays, with the SHA-256 of the whole file.

    `size` is the file's size in bytes, `what` its name in errors. `check_shapes` sees every name and shape before any
    data is read and raises what it does not want.

    Raises:
        AdapterError: the bytes are not safetensors, or their header lies about them.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little") if len(start) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _not_safetensors(start, size, what)
    header = file.read(length)
    if len(header) != length:
        raise AdapterError(f"{what} is cut short: its header ends early")
    if not header.startswith(b"{"):
        raise _not_safetensors(start, size, what)
    tensors = _parse_header(header, size - 8 - length, what)
    check_shapes({tensor.name: tensor.shape for tensor in tensors})
    if 4 * sum(math.prod(tensor.shape) for tensor in tensors) > MAX_STATE_BYTES:
        raise AdapterError(f"{what} takes more than {MAX_STATE_BYTES:,} bytes in float32")
    sha = hashlib.sha256(start + header)
    arrays: dict[str, FloatArray] = {}
    for tensor in tensors:  # in the order of the file
        data = file.read(tensor.end - tensor.begin)
        if len(data) != tensor.end - tensor.begin:
            raise AdapterError(f"{what} is cut short: {shortened(tensor.name)} ends early")
        sha.update(data)
        arrays[tensor.name] = _as_float32(data, tensor)
    return arrays, sha.hexdigest()


def _not_safetensors(start: bytes, size: int, what: str) -> AdapterError:
    # Asked only now: a header length of 0x0480 begins as a pickle does.
    if _PICKLE.match(start):
        return AdapterError(
            f"{what} is a pickle, which can run any program when it is opened: it is never read",
            hint="ask for the adapter in the safetensors format",
        )
    return AdapterError(f"{what} is not a safetensors file, or is cut short ({size:,} bytes)")


def _parse_header(header: bytes, data_bytes: int, what: str) -> list[_Tensor]:
    entries = parse_json_object(header, what=f"the header of {what}", limit=MAX_HEADER_BYTES)
    entries.pop("__metadata__", None)
    tensors = sorted(
        (_parse_entry(name, entry, what) for name, entry in entries.items()), key=lambda t: (t.begin, t.end)
    )
    # The tensors must tile the data exactly: no gap to hide bytes in, no two tensors that share bytes.
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            raise AdapterError(f"{what}: the data of {shortened(tensor.name)} overlaps another's or leaves a gap")
        position = tensor.end
    if position != data_bytes:
        raise AdapterError(f"{what} holds {data_bytes:,} bytes of data, its header describes {position:,}")
    return tensors


def _parse_entry(name: str, entry: object, what: str) -> _Tensor:
    label = f"{what}: {shortened(name, 120)}"
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise AdapterError(f"{label}: wanted dtype, shape and data_offsets, got {shortened(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise AdapterError(f"{label}: wanted one of the types {', '.join(_ITEM_BYTES)}, got {shortened(dtype)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_size(length) for length in shape):
        raise AdapterError(f"{label}: the shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise AdapterError(f"{label}: data_offsets are not two positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise AdapterError(f"{label}: {end - begin:,} bytes do not hold {dtype} of the shape {shortened(tuple(shape))}")
    return _Tensor(name=name, dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _as_float32(data: bytes, tensor: _Tensor) -> FloatArray:
    if tensor.dtype == "F32":
        values = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    elif tensor.dtype == "F16":
        values = np.frombuffer(data, dtype="<f2").astype(np.float32)
    else:  # a bfloat16 is the upper half of a float32
        values = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return values.reshape(tensor.shape)
