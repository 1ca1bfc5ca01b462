"""Reading GGUF files: the container and its tensors, with numpy alone.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). The file is not trusted:
every count, length, offset and shape is checked against the size of the file before anything is allocated, and no
tensor data may be claimed twice, so that what a file can make us allocate is bounded by its own size.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from neuralforge.models.gguf_quants import dequantize, tensor_bytes
from neuralforge_common.errors import ModelError

Value = int | float | bool | str | tuple[str, ...] | NDArray[np.generic]

# Type number -> numpy type. 8 is a string, 9 an array.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

# Far above any vocabulary; a string costs Python a hundred bytes whatever the file spends on it.
_MOST_STRINGS = 1 << 22
_MOST_ENTRIES = 1 << 17
_MOST_DIMENSIONS = 4
_MOST_ALIGNMENT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Where a tensor lies. `shape` is in numpy's order (rows first), `start` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    quantisation: int
    start: int
    size: int


class GgufFile:
    """An open GGUF file: `metadata` and `tensors` by name; `read` dequantises one. Close it, or use `with`."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header; raises ModelError where it is damaged or hostile."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ModelError(f"{path} cannot be read: {error}") from error
        try:
            cursor = _Cursor(self._map, path)
            self.metadata, self.tensors = _read_header(cursor)
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> Self:
        """The open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor in float32, copied out of the file."""
        tensor = self.tensors[name]
        # bytes, not a view: a view would keep the map open, and dequantising copies anyway.
        data = self._map[tensor.start : tensor.start + tensor.size]
        return dequantize(data, tensor.quantisation).reshape(tensor.shape)


class _Cursor:
    """A place in the file that cannot leave it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.offset, self.size = data, path, 0, len(data)

    def fail(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path}: damaged GGUF file: {what} (byte {self.offset} of {self.size})",
            hint="download it again and compare its size or digest with the origin's",
        )

    def require(self, count: int, width: int, what: str) -> None:
        if count * width > self.size - self.offset:
            raise self.fail(f"{count} {what} do not fit into the rest of the file")

    def scalar(self, format: str) -> int:
        width = struct.calcsize(format)
        self.require(1, width, "value")
        (value,) = struct.unpack_from(format, self.data, self.offset)
        self.offset += width
        return int(value)

    def string(self) -> str:
        length = self.scalar("<Q")
        self.require(length, 1, "characters")
        text = self.data[self.offset : self.offset + length]
        self.offset += length
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a string is not UTF-8") from None

    def numbers(self, kind: int, count: int) -> NDArray[np.generic]:
        dtype = np.dtype(_SCALARS[kind])
        self.require(count, dtype.itemsize, "array elements")
        size = count * dtype.itemsize
        values = np.frombuffer(self.data[self.offset : self.offset + size], dtype=dtype)
        self.offset += size
        return values

    def value(self) -> Value:
        kind = self.scalar("<I")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            item: int | float | bool = self.numbers(kind, 1)[0].item()
            return item
        if kind != _ARRAY:
            raise self.fail(f"unknown value type {kind}")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element in _SCALARS:
            return self.numbers(element, count)
        if element != _STRING:
            raise self.fail(f"arrays of type {element} are not read")
        if count > _MOST_STRINGS:
            raise self.fail(f"an array of {count} strings, at most {_MOST_STRINGS} are read")
        self.require(count, 8, "strings")
        return tuple(self.string() for _ in range(count))


def _read_header(cursor: _Cursor) -> tuple[dict[str, Value], dict[str, Tensor]]:
    cursor.require(1, 24, "header")
    if cursor.data[:4] != b"GGUF":
        raise ModelError(f"{cursor.path} is not a GGUF file")
    cursor.offset = 4
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ModelError(
            f"{cursor.path}: GGUF version {version} is not read, wanted 2 or 3 (little endian)",
            hint="convert it with today's llama.cpp",
        )
    tensor_count, value_count = cursor.scalar("<Q"), cursor.scalar("<Q")
    if max(tensor_count, value_count) > _MOST_ENTRIES:
        raise cursor.fail(f"{tensor_count} tensors and {value_count} metadata entries")
    cursor.require(value_count, 13, "metadata entries")  # key length, type, one byte
    metadata: dict[str, Value] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.fail(f"{key} stands there twice")
        metadata[key] = cursor.value()
    cursor.require(tensor_count, 24, "tensors")  # name length, dimensions, type, offset
    found = [_read_tensor(cursor) for _ in range(tensor_count)]
    return metadata, _placed(cursor, found, metadata)


def _read_tensor(cursor: _Cursor) -> Tensor:
    name, dimensions = cursor.string(), cursor.scalar("<I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise cursor.fail(f"{name} has {dimensions} dimensions")
    # The file names the fastest dimension first.
    shape = tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1]
    quantisation, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    count = math.prod(shape)
    if not 0 < count <= cursor.size * 8:  # no quantisation has less than a bit for a value
        raise cursor.fail(f"{name} has the shape {shape}")
    size = tensor_bytes(quantisation, count, shape[-1], name)
    return Tensor(name=name, shape=shape, quantisation=quantisation, start=offset, size=size)


def _placed(cursor: _Cursor, found: list[Tensor], metadata: Mapping[str, Value]) -> dict[str, Tensor]:
    """Turn offsets into places in the file, none outside it, none shared."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(f"alignment {alignment!r} is no power of two")
    base = -(-cursor.offset // alignment) * alignment
    placed: dict[str, Tensor] = {}
    end = base
    for tensor in sorted(found, key=lambda tensor: tensor.start):
        start = base + tensor.start
        if tensor.start % alignment or start < end or start + tensor.size > cursor.size:
            raise cursor.fail(f"the data of {tensor.name} ({tensor.size} bytes) overlaps or leaves the file")
        if tensor.name in placed:
            raise cursor.fail(f"{tensor.name} stands there twice")
        placed[tensor.name] = Tensor(
            name=tensor.name,
            shape=tensor.shape,
            quantisation=tensor.quantisation,
            start=start,
            size=tensor.size,
        )
        end = start + tensor.size
    return placed
