"""The GGUF reader on its own: what the `gguf` package wrote is read as that package reads it, damage is refused."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.models.gguf import GgufFile
from neuralforge.models.gguf_quants import dequantize, tensor_bytes
from neuralforge_common.errors import ModelError

Kind = gguf.GGMLQuantizationType

OURS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
THE_PACKAGES = (Kind.Q4_K, Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.Q5_K)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two tensors and a value of every type that the format has."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("text", "hé\n")
    writer.add_bool("yes", True)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_array("words", ["a", "", "ĊĠ"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.arange(4, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_type_of_value_comes_back(file: Path) -> None:
    with GgufFile(file) as opened:
        values = {name: list(v) if isinstance(v, np.ndarray) else v for name, v in opened.metadata.items()}
    assert values == {
        "general.architecture": "llama",
        "text": "hé\n",
        "yes": True,
        "u8": 200,
        "i8": -100,
        "u16": 60000,
        "i16": -30000,
        "u32": 4_000_000_000,
        "i32": -2_000_000_000,
        "u64": 2**63,
        "i64": -(2**62),
        "f32": 0.5,
        "f64": 0.1,
        "words": ("a", "", "ĊĠ"),
        "numbers": [1, 2, 3],
    }


def test_tensors_come_back_in_numpys_order(file: Path) -> None:
    with GgufFile(file) as opened:
        assert {name: tensor.shape for name, tensor in opened.tensors.items()} == {"first": (2, 3), "second": (4,)}
        assert opened.read("first").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert opened.read("second").tolist() == [0, 1, 2, 3]
        assert opened.read("second").dtype == np.float32


def test_what_was_read_outlives_the_file(file: Path) -> None:
    with GgufFile(file) as opened:
        first = opened.read("first")
    file.unlink()
    assert first.sum() == 15


@pytest.mark.parametrize("kind", [*OURS, *THE_PACKAGES], ids=lambda kind: kind.name)
def test_random_bytes_are_dequantised_as_the_package_does_it(kind: gguf.GGMLQuantizationType) -> None:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(3).integers(0, 256, size=(64, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(blocks, kind).reshape(-1)
        found = dequantize(blocks.tobytes(), int(kind))
    assert found.dtype == np.float32
    assert found.shape == (64 * values,)
    np.testing.assert_array_equal(found, wanted)
    assert tensor_bytes(int(kind), 64 * values, values, "t") == blocks.nbytes


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind != Kind.F32], ids=lambda kind: kind.name)
def test_quantised_values_come_back_as_near_as_their_bits_allow(kind: gguf.GGMLQuantizationType) -> None:
    values = np.random.default_rng(4).standard_normal((16, 64)).astype(np.float32)
    found = dequantize(gguf.quants.quantize(values, kind).tobytes(), int(kind)).reshape(values.shape)
    # A block of 32 spans about four: one step of b bits is 4 / 2**b.
    bits = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q5_0: 5, Kind.Q5_1: 5, Kind.Q8_0: 8, Kind.F16: 11, Kind.BF16: 8}[kind]
    assert 0 < np.abs(found - values).mean() < 2 / 2**bits


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q6_K], ids=lambda kind: kind.name)
def test_rows_that_do_not_fill_blocks_are_refused(kind: gguf.GGMLQuantizationType) -> None:
    with pytest.raises(ModelError, match="do not fill blocks"):
        tensor_bytes(int(kind), 48 * 4, 48, "t")


@pytest.mark.parametrize("kind", [4, 5, 31, 200, 2**32 - 1])
def test_a_quantisation_that_nobody_knows_is_refused(kind: int) -> None:
    with pytest.raises(ModelError, match=r"which nobody here can read|cannot be read"):
        dequantize(bytes(tensor_bytes(kind, 256, 256, "t")), kind)


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    with GgufFile(file) as opened:
        end = max(tensor.start + tensor.size for tensor in opened.tensors.values())
    for length in range(end):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            GgufFile(file)


def test_a_file_with_a_flipped_bit_is_refused_or_read_within_its_own_size(file: Path) -> None:
    whole = file.read_bytes()
    generator = random.Random(9)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            with GgufFile(file) as opened:
                read = [opened.read(name) for name in opened.tensors]
        except ModelError:
            refused += 1
        else:
            assert sum(values.nbytes for values in read) <= 8 * 4 * len(whole)
    assert refused > len(whole) // 4


@settings(max_examples=200, deadline=2000)
@given(data=st.binary(max_size=400), version=st.sampled_from([1, 2, 3, 4, 3 << 24]))
def test_rubbish_is_refused_soon(data: bytes, version: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + data)
    try:
        with GgufFile(path) as opened:
            assert not opened.tensors
    except ModelError:
        pass


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(*, tensors: int = 0, values: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + body


def tensor(name: str, shape: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no magic": (b"GGML" + bytes(60), "is not a GGUF file"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "version 50331648 is not read"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1 is not read"),
    "2**60 tensors": (header(tensors=2**60), "tensors and 0 metadata entries"),
    "a million values in no bytes": (header(values=100_000), "do not fit"),
    "a string of 2**63 characters": (header(values=1, body=struct.pack("<Q", 2**63) + bytes(40)), "do not fit"),
    "an array of 2**60 numbers": (
        header(values=1, body=string("a") + struct.pack("<IIQ", 9, 10, 2**60)),
        "do not fit",
    ),
    "an array of 2**40 strings": (
        header(values=1, body=string("a") + struct.pack("<IIQ", 9, 8, 2**40)),
        "at most 4194304",
    ),
    "arrays of arrays": (header(values=1, body=string("a") + struct.pack("<IIQ", 9, 9, 1)), "arrays of type 9"),
    "a type of tomorrow": (header(values=1, body=string("a") + struct.pack("<I", 13) + bytes(9)), "value type 13"),
    "a key twice": (header(values=2, body=2 * (string("a") + struct.pack("<IB", 0, 1))), "stands there twice"),
    "a name that is not UTF-8": (
        header(values=1, body=struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IQ", 0, 1)),
        "not UTF-8",
    ),
    "no dimensions": (header(tensors=1, body=tensor("t", ()) + bytes(32)), "0 dimensions"),
    "a thousand dimensions": (header(tensors=1, body=tensor("t", (1,) * 1000)), "1000 dimensions"),
    "a side of zero": (header(tensors=1, body=tensor("t", (4, 0)) + bytes(64)), "has the shape"),
    "a product past 64 bits": (header(tensors=1, body=tensor("t", (2**63, 4)) + bytes(64)), "has the shape"),
    "data outside the file": (header(tensors=1, body=tensor("t", (4,), offset=2**40) + bytes(64)), "leaves the file"),
    "an offset past 64 bits": (
        header(tensors=1, body=tensor("t", (4,), offset=2**64 - 32) + bytes(64)),
        "leaves the file",
    ),
    "data between two steps": (header(tensors=1, body=tensor("t", (4,), offset=4) + bytes(96)), "leaves the file"),
    "one piece of data twice": (
        header(tensors=2, body=tensor("a", (8,)) + tensor("b", (8,)) + bytes(128)),
        "overlaps",
    ),
    "a tensor twice": (
        header(tensors=2, body=tensor("a", (8,)) + tensor("a", (8,), offset=32) + bytes(128)),
        "stands there twice",
    ),
    "an odd alignment": (
        header(values=1, body=string("general.alignment") + struct.pack("<II", 4, 24)),
        "alignment 24 is no power of two",
    ),
    "an alignment of a gigabyte": (
        header(values=1, body=string("general.alignment") + struct.pack("<II", 4, 1 << 30)),
        "is no power of two",
    ),
    "an alignment that is text": (
        header(values=1, body=string("general.alignment") + struct.pack("<I", 8) + string("32")),
        "is no power of two",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_header_is_refused_at_once_and_by_name(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(ModelError, match=message):
        GgufFile(path)
    assert time.monotonic() - start < 1


def test_the_hostile_headers_are_refused_for_their_own_fault(tmp_path: Path) -> None:
    """The same header without the fault is read."""
    path = tmp_path / "good.gguf"
    values = string("general.alignment") + struct.pack("<II", 4, 32)
    body = values + tensor("a", (8,)) + tensor("b", (2, 4), offset=32)
    place = -(-len(header(body=body)) // 32) * 32
    path.write_bytes(header(tensors=2, values=1, body=body).ljust(place + 64, b"\0"))
    with GgufFile(path) as opened:
        assert {name: found.shape for name, found in opened.tensors.items()} == {"a": (8,), "b": (4, 2)}


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b""), lambda path: path.mkdir(), lambda path: None])
def test_what_cannot_be_mapped_is_refused(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "thing.gguf"
    make(path)
    with pytest.raises(ModelError, match="cannot be read"):
        GgufFile(path)
