"""GGUF's block quantisations, undone with numpy.

A block holds 32 values of one row: a scale d (fp16), in the `_1` kinds also a minimum m, and small integers q; the
values are d·q + m, or d·(q - offset). Four-bit integers lie in bytes, low halves first; the fifth bits of the Q5 kinds
lie in one 32-bit word. Source: ggml-quants.c of github.com/ggml-org/ggml.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralforge_common.errors import ModelError

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16 = 0, 1, 2, 3, 6, 7, 8, 30

# Values and bytes of a block.
_BLOCKS = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (32, 18),
    Q4_1: (32, 20),
    Q5_0: (32, 22),
    Q5_1: (32, 24),
    Q8_0: (32, 34),
}

_NAMES = {8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"}


def tensor_bytes(quantisation: int, count: int, row: int, name: str) -> int:
    """Bytes that `count` values in rows of `row` take.

    Raises:
        ModelError: the quantisation is not read here, or rows do not fill whole blocks.
    """
    values, size = _BLOCKS.get(quantisation) or _foreign_block(quantisation, name)
    if row % values:
        raise ModelError(f"{name}: rows of {row} values do not fill blocks of {values}; the GGUF file is damaged")
    return count // values * size


def dequantize(data: bytes, quantisation: int) -> NDArray[np.float32]:
    """All values of a tensor's bytes, flat."""
    if quantisation == F32:
        return np.frombuffer(data, "<f4").astype(np.float32)
    if quantisation == F16:
        return np.frombuffer(data, "<f2").astype(np.float32)
    if quantisation == BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if quantisation not in _BLOCKS:
        module: Any = importlib.import_module("gguf.quants")
        constants: Any = importlib.import_module("gguf.constants")
        kind = constants.GGMLQuantizationType(quantisation)
        try:
            values = module.dequantize(np.frombuffer(data, np.uint8), kind)
        except NotImplementedError:
            raise ModelError(f"a tensor of type {kind.name} cannot be read, even with the gguf package") from None
        return np.asarray(values, np.float32).reshape(-1)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, _BLOCKS[quantisation][1])
    scale = _half(blocks, 0)
    if quantisation == Q8_0:
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    if quantisation == Q4_0:
        return (scale * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)).reshape(-1)
    if quantisation == Q4_1:
        return (scale * _nibbles(blocks[:, 4:]) + _half(blocks, 2)).reshape(-1)
    if quantisation == Q5_0:
        return (scale * (_five_bits(blocks, 2).astype(np.float32) - 16)).reshape(-1)
    return (scale * _five_bits(blocks, 4) + _half(blocks, 2)).reshape(-1)


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _five_bits(blocks: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    high = np.ascontiguousarray(blocks[:, at : at + 4]).view("<u4")
    fifth: NDArray[np.uint8] = (((high >> np.arange(32, dtype=np.uint32)) & 1) << 4).astype(np.uint8)
    return np.bitwise_or(_nibbles(blocks[:, at + 4 :]), fifth)


def _foreign_block(quantisation: int, name: str) -> tuple[int, int]:
    """Block sizes of the kinds that the `gguf` package can undo, where somebody has installed it."""
    label = _NAMES.get(quantisation, f"type {quantisation}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name} is quantised as {label}; read here are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0",
            hint="pip install gguf adds the others; or take the Q8_0 file of the same model",
        )
    constants: Any = importlib.import_module("gguf.constants")
    try:
        values, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType(quantisation)]
    except (KeyError, ValueError):
        raise ModelError(f"{name} is quantised as {label}, which nobody here can read") from None
    return int(values), int(size)
