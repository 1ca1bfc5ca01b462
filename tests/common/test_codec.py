"""safetensors: what is written comes back bit for bit, and a header that lies is refused before memory is spent."""

import contextlib
import hashlib
import io
import json
import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from neuralforge_common.codec import decode_tensors, encode_tensors
from neuralforge_common.errors import AdapterError

Tensors = dict[str, npt.NDArray[np.float32]]

tensors = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=12),
    st.tuples(st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32 - 1)),
    max_size=4,
).map(
    lambda shapes: {
        # Random bits, so that every NaN, infinity and subnormal number comes up.
        name: np.random.default_rng(seed).integers(0, 2**32, size=shape, dtype=np.uint32).view(np.float32)
        for name, (shape, seed) in shapes.items()
    }
)


def decode(data: bytes, **checks: Any) -> Tensors:
    return decode_tensors(io.BytesIO(data), len(data), what="w", **checks)[0]


def encoded(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def bits(arrays: Tensors) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (array.shape, array.tobytes()) for name, array in arrays.items()}


@given(given_tensors=tensors)
def test_decoding_undoes_encoding_bit_by_bit(given_tensors: Tensors) -> None:
    assert bits(decode(encode_tensors(given_tensors))) == bits(given_tensors)


@given(given_tensors=tensors)
def test_the_stock_library_reads_what_we_write(given_tensors: Tensors) -> None:
    assert bits(load(encode_tensors(given_tensors))) == bits(given_tensors)


@given(given_tensors=tensors, data=st.data())
def test_the_order_of_the_names_does_not_change_the_bytes(given_tensors: Tensors, data: st.DataObject) -> None:
    names = data.draw(st.permutations(sorted(given_tensors)))
    assert encode_tensors({name: given_tensors[name] for name in names}) == encode_tensors(given_tensors)


def test_the_digest_is_that_of_the_whole_file() -> None:
    data = encode_tensors({"a": np.ones((2, 3), np.float32)})
    assert decode_tensors(io.BytesIO(data), len(data), what="w")[1] == hashlib.sha256(data).hexdigest()


def test_half_precision_is_widened_exactly() -> None:
    import torch
    from safetensors.torch import save

    values = torch.tensor([[1.5, -0.0, 3.140625], [65504.0, 6e-8, float("inf")]])
    for dtype in (torch.float16, torch.bfloat16):
        half = values.to(dtype)
        assert torch.equal(torch.from_numpy(decode(save({"x": half}))["x"].copy()), half.float())


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 40])
def test_a_file_that_is_cut_short_is_refused(cut: int) -> None:
    whole = encode_tensors({"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float32)})
    for data in (whole[:cut], whole[: len(whole) - 1 - cut]):
        with pytest.raises(AdapterError, match=r"^w "):
            decode(data)


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = encode_tensors({"a": np.ones((4, 4), np.float32)})
    with pytest.raises(AdapterError, match="cut short: 'a' ends early"):
        decode_tensors(io.BytesIO(data[:-8]), len(data), what="w")
    with pytest.raises(AdapterError, match="cut short: its header ends early"):
        decode_tensors(io.BytesIO(data[:20]), len(data), what="w")


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    data = encode_tensors({"a": np.ones(2, np.float32)})
    with pytest.raises(AdapterError, match="holds 12 bytes of data, its header describes 8"):
        decode(data + b"\0\0\0\0")


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(dtype="I64", data_offsets=[0, 16])},
        {"a": entry(dtype="F64", data_offsets=[0, 16])},
        {"a": entry(dtype=["F32"])},
        {"a": entry(shape="2")},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=[2.0])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=[1] * 9)},
        {"a": entry(shape=[2**60])},
        {"a": entry(shape=[3])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[0, 8, 8])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[4, 12])},
        {"a": entry(data_offsets=["0", "8"])},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": [1, 2]},
        {"a": None},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(data_offsets=[4, 12])},
        {"a": entry(), "b": entry(data_offsets=[12, 20])},
        {"a": entry(shape=[4], data_offsets=[0, 16]), "b": entry(data_offsets=[8, 16])},
        [],
        b'{"a": NaN}',
        b'{"a": {}, "a": {}}',
        b"{" + b"[" * 5000,
        b'{"a": "\xff"}',
    ],
    ids=str,
)
def test_a_header_that_lies_or_is_none_is_refused_in_one_line(header: Any) -> None:
    # As many bytes as the header speaks of, so that their number is not what gives it away.
    entries = [entry for entry in header.values() if isinstance(entry, dict)] if isinstance(header, dict) else []
    ends = [entry["data_offsets"][-1] for entry in entries if "data_offsets" in entry]
    with pytest.raises(AdapterError) as caught:
        decode(encoded(header, bytes(max((int(end) for end in ends), default=8))))
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 300


def test_a_header_that_promises_terabytes_spends_no_memory() -> None:
    claims = {"a": entry(shape=[2**30, 2], data_offsets=[0, 2**33])}
    size = len(encoded(claims)) + 2**33
    tracemalloc.start()
    with pytest.raises(AdapterError, match="takes more than 4,294,967,296 bytes"):
        decode_tensors(io.BytesIO(encoded(claims)), size, what="w")
    for length in (2**63, 2**24, 9 * 2**20):
        with pytest.raises(AdapterError, match="is not a safetensors file"):
            decode_tensors(io.BytesIO(length.to_bytes(8, "little") + b"{" * 50), 2**40, what="w")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_names_and_shapes_are_checked_before_any_data_is_read() -> None:
    class Reader(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size)
            return super().read(size)

    def refuse(shapes: Any) -> None:
        assert shapes == {"a": (2, 2)}
        raise AdapterError("not these")

    reads: list[int | None] = []
    data = encode_tensors({"a": np.ones((2, 2), np.float32)})
    with pytest.raises(AdapterError, match="not these"):
        decode_tensors(Reader(data), len(data), what="w", check_shapes=refuse)
    assert sum(size or 0 for size in reads) == len(data) - 16


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a": [1.0]}, protocol=2),
        pickle.dumps({"a": [1.0]}, protocol=4),
        b"PK\x03\x04" + bytes(40),
        b"PK\x05\x06" + bytes(18),
    ],
    ids=["pickle 2", "pickle 4", "torch zip", "empty zip"],
)
def test_a_pickle_is_called_one_and_never_opened(data: bytes) -> None:
    with pytest.raises(AdapterError, match="is a pickle, which can run any program") as caught:
        decode(data)
    assert "safetensors" in caught.value.hint


@given(data=st.binary(max_size=120))
def test_any_bytes_at_all_are_tensors_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(AdapterError):
        decode(data)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_a_flipped_bit_of_the_header_is_noticed_or_changes_names_and_values_alone(position: int, bit: int) -> None:
    whole = encode_tensors({"alpha": np.arange(6, dtype=np.float32).reshape(2, 3), "beta": np.ones(4, np.float32)})
    broken = bytearray(whole)
    broken[position % len(whole)] ^= 1 << bit
    try:
        arrays = decode(bytes(broken))
    except AdapterError:
        return
    assert sorted(math.prod(array.shape) for array in arrays.values()) == [4, 6]
