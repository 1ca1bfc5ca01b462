"""Vectors as bytes: exact where that is promised, within the bound where it is not, and nothing believed unchecked."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from neuralforge_common.errors import AdapterError
from neuralforge_common.wire import BLOCK, decode, encode, encoded_size

WIRES = ("fp32", "fp16", "int8")

vectors = arrays.arrays(
    np.float32,
    st.integers(0, 3 * BLOCK),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
)


@given(vector=vectors)
def test_fp32_is_the_identity_to_the_last_bit(vector: Any) -> None:
    assert decode(encode(vector, "fp32"), count=vector.size, wire="fp32").tobytes() == vector.tobytes()


@given(vector=arrays.arrays(np.float32, st.integers(0, 600), elements=st.floats(-65_504, 65_504, width=16)))
def test_fp16_is_the_identity_on_its_own_numbers(vector: Any) -> None:
    assert decode(encode(vector, "fp16"), count=vector.size, wire="fp16").tobytes() == vector.tobytes()


@given(vector=vectors)
def test_int8_is_off_by_half_a_step_at_most(vector: Any) -> None:
    found = decode(encode(vector, "int8"), count=vector.size, wire="int8")
    for begin in range(0, vector.size, BLOCK):
        block = vector[begin : begin + BLOCK].astype(np.float64)
        step = np.abs(block).max() / 127
        # Half a step, and what float32 rounds in scale and quotient; below 1e-36 float32 has few digits or none.
        assert np.abs(found[begin : begin + BLOCK] - block).max() <= 0.5 * step * (1 + 1e-4) + 1e-36


@given(vector=vectors)
def test_sending_again_what_int8_made_of_it_loses_nothing_more(vector: Any) -> None:
    once = decode(encode(vector, "int8"), count=vector.size, wire="int8")
    twice = decode(encode(once, "int8"), count=vector.size, wire="int8")
    assert np.abs(twice - once).max(initial=0.0) <= 1e-6 * np.abs(once).max(initial=0.0) + 1e-36


def test_error_feedback_gets_everything_across_in_the_end() -> None:
    random = np.random.default_rng(0)
    wanted, arrived, owed = np.zeros(1_000), np.zeros(1_000), np.zeros(1_000, np.float32)
    for _ in range(50):
        delta = random.standard_normal(1_000, dtype=np.float32)
        wanted += delta
        sent = delta + owed
        received = decode(encode(sent, "int8"), count=1_000, wire="int8")
        owed = sent - received
        arrived += received
    assert np.abs(arrived - wanted).max() <= np.abs(owed).max() + 1e-4


@given(vector=vectors, wire=st.sampled_from(WIRES))
def test_the_size_is_known_beforehand_and_values_stay_aligned(vector: Any, wire: Any) -> None:
    small = np.clip(vector, -1e4, 1e4)
    data = encode(small, wire)
    assert len(data) == encoded_size(small.size, wire)
    assert (len(data) - encoded_size(0, wire)) in (
        4 * small.size,
        2 * small.size,
        small.size + 4 * -(-small.size // BLOCK),
    )
    assert decode(data, count=small.size, wire=wire).flags.aligned
    assert encoded_size(0, wire) % 16 == 0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_sent(wire: Any, bad: float) -> None:
    with pytest.raises(AdapterError, match="not finite"):
        encode(np.array([1, bad], np.float32), wire)


def test_values_that_fp16_cannot_carry_are_not_sent() -> None:
    assert decode(encode(np.array([65_504], np.float32), "fp16"), count=1, wire="fp16") == 65_504
    with pytest.raises(AdapterError, match="fp16"):
        encode(np.array([65_520], np.float32), "fp16")


@pytest.mark.parametrize("wire", WIRES)
def test_every_wrong_length_is_refused(wire: Any) -> None:
    data = encode(np.ones(300, np.float32), wire)
    for other in (b"", data[:-1], data + b"\0", data[:16], data[:15], data * 2):
        with pytest.raises(AdapterError, match="bytes"):
            decode(other, count=300, wire=wire)
    for count in (0, 299, 301, 10**12):
        with pytest.raises(AdapterError):
            decode(data, count=count, wire=wire)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("position", range(16))
def test_every_flipped_bit_of_the_header_is_refused(wire: Any, position: int) -> None:
    data = encode(np.ones(300, np.float32), wire)
    for bit in range(8):
        broken = bytearray(data)
        broken[position] ^= 1 << bit
        with pytest.raises(AdapterError):
            decode(bytes(broken), count=300, wire=wire)


def test_another_format_of_the_same_length_is_named() -> None:
    data = encode(np.ones(4, np.float32), "fp32")
    disguised = data[:4] + encode(np.ones(8, np.float32), "fp16")[4:16] + data[16:]
    with pytest.raises(AdapterError, match="wanted the wire format fp32, got fp16"):
        decode(disguised, count=4, wire="fp32")


@settings(max_examples=200)
@given(body=st.binary(min_size=4 + 8, max_size=4 + 8), wire=st.sampled_from(WIRES))
def test_any_body_is_decoded_or_refused_without_a_warning(body: bytes, wire: Any) -> None:
    count = {"fp32": 3, "fp16": 6, "int8": 8}[wire]
    header = encode(np.zeros(count, np.float32), wire)[:16]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = decode(header + body, count=count, wire=wire)
        except AdapterError:
            return
    assert found.shape == (count,)
    assert found.dtype == np.float32


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1e-3])
def test_an_int8_scale_that_no_block_has_is_refused(scale: float) -> None:
    data = bytearray(encode(np.ones(8, np.float32), "int8"))
    data[16:20] = np.float32(scale).tobytes()
    with pytest.raises(AdapterError, match="scale"):
        decode(bytes(data), count=8, wire="int8")


def test_blocks_of_nothing_and_of_next_to_nothing_stay_finite() -> None:
    for value in (0.0, 1e-45, 1e-40, -1e-38):
        found = decode(encode(np.full(300, value, np.float32), "int8"), count=300, wire="int8")
        assert np.isfinite(found).all()
        assert np.abs(found - value).max() <= 1e-36


def test_the_largest_numbers_travel() -> None:
    vector = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 1.0], np.float32)
    assert decode(encode(vector, "fp32"), count=3, wire="fp32").tolist() == vector.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(encode(vector / 2, "int8"), count=3, wire="int8")
    np.testing.assert_allclose(found[:2], vector[:2] / 2, rtol=1e-2)
