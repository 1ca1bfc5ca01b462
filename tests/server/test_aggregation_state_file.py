"""States on the disk: the same bits back, the same bytes again, and damage refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rounds import LAYOUT, METHODS, method_of, run, start, updates_of

from neuralforge_common.errors import CheckpointError
from neuralforge_server.aggregation.method import GlobalState
from neuralforge_server.aggregation.state_file import decode_state, encode_state, state_digest


def a_state(name: str = "residual") -> GlobalState:
    method = method_of(name, "none", "fedyogi" if name == "residual" else "fedavg")
    return run(method, start(method), updates_of(method.part(1), 3)).state


def resealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def with_header(change: dict[str, object]) -> bytes:
    data = encode_state(a_state())
    length = int.from_bytes(data[4:8], "little")
    header = json.loads(data[8 : 8 + length]) | change
    text = json.dumps(header).encode()
    return resealed(data[:4] + len(text).to_bytes(4, "little") + text + data[8 + length : -32])


@pytest.mark.parametrize("name", METHODS)
def test_a_state_comes_back_bit_for_bit(name: str) -> None:
    state = a_state(name)
    found = decode_state(encode_state(state))
    assert found.layout == state.layout
    assert found.frozen_rank == state.frozen_rank
    assert found.vector.tobytes() == state.vector.tobytes()
    assert (found.frozen is None) == (state.frozen is None)
    if found.frozen is not None and state.frozen is not None:
        assert found.frozen.tobytes() == state.frozen.tobytes()
    assert {n: m.tobytes() for n, m in found.moments.items()} == {n: m.tobytes() for n, m in state.moments.items()}
    assert encode_state(found) == encode_state(state)


def test_the_digest_is_that_of_the_bytes() -> None:
    data = encode_state(a_state())
    assert state_digest(data) == hashlib.sha256(data).hexdigest()


@settings(max_examples=200)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(position: int, bit: int) -> None:
    data = bytearray(encode_state(a_state()))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(CheckpointError):
        decode_state(bytes(data))


@settings(max_examples=100)
@given(length=st.integers(0, 10**6))
def test_a_state_cut_short_is_refused(length: int) -> None:
    data = encode_state(a_state())
    with pytest.raises(CheckpointError):
        decode_state(data[: length % len(data)])


@given(data=st.binary(max_size=300))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, b"NFS1" + data, resealed(b"NFS1" + data)):
        with pytest.raises(CheckpointError):
            decode_state(candidate)


@pytest.mark.parametrize(
    "change",
    [
        {"frozen_rank": -1},
        {"frozen_rank": 257},
        {"frozen_rank": True},
        {"frozen_rank": 23},
        {"moments": ["first"]},
        {"moments": ["second", "first"]},
        {"moments": ["first", "first"]},
        {"moments": ["../first", "second"]},
        {"moments": "first"},
        {"moments": [1, 2]},
        {"moments": [str(index) for index in range(99)]},
        {"layout": {}},
        {"layout": {"rank": 10**9, "modules": [["q", 3, 2]]}},
        {"layout": {"rank": True, "modules": [["q", 3, 2]]}},
        {"extra": 1},
    ],
)
def test_a_header_that_lies_under_a_right_digest_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        decode_state(with_header(change))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_neither_written_nor_read(bad: float) -> None:
    state = a_state()
    vector = state.vector.copy()
    vector[5] = bad
    with pytest.raises(CheckpointError, match="finite"):
        encode_state(replace(state, vector=vector))
    data = bytearray(encode_state(state))
    start_of_values = 8 + int.from_bytes(data[4:8], "little")
    data[start_of_values : start_of_values + 4] = np.float32(bad).tobytes()
    with pytest.raises(CheckpointError, match="finite"):
        decode_state(resealed(bytes(data[:-32])))


def test_arrays_that_do_not_fit_the_layout_are_not_written() -> None:
    state = a_state("mean")
    with pytest.raises(CheckpointError, match="wanted"):
        encode_state(replace(state, vector=state.vector[1:]))
    with pytest.raises(CheckpointError, match="wanted"):
        encode_state(replace(state, frozen_rank=2))
    with pytest.raises(CheckpointError, match="wanted"):
        encode_state(replace(state, moments={"first": np.zeros(LAYOUT.size)}))  # type: ignore[dict-item]
