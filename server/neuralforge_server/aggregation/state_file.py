"""A federation's state ↔ bytes: the same state gives the same bytes, and damaged ones are refused.

    NFS1 | header length (4 bytes, little-endian) | header (JSON) | float32 values | SHA-256 of all before

The header holds the layout, the frozen rank and the moments' names; values follow as vector, frozen, moments by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct

import numpy as np

from neuralforge_common.adapter import MAX_RANK, MAX_STATE_BYTES
from neuralforge_common.errors import AdapterError, CheckpointError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.strict_json import parse_json_object
from neuralforge_server.aggregation.method import GlobalState

_MAGIC = b"NFS1"
_START = struct.Struct("<4sI")
_DIGEST = 32
_MAX_HEADER = 32 * 2**20
_MAX_MOMENTS = 4
_NAME = re.compile(r"[a-z0-9_]{1,32}")
_HINT = "an older state of the same federation can be used instead"


def encode_state(state: GlobalState) -> bytes:
    """The state as bytes.

    Raises:
        CheckpointError: values that are not finite, or arrays that do not fit the layout.
    """
    frozen_size = state.layout.with_rank(state.frozen_rank).size if state.frozen_rank else 0
    frozen = np.zeros(0, np.float32) if state.frozen is None else state.frozen
    names = sorted(state.moments)
    header = json.dumps(
        {"layout": json.loads(state.layout.to_json()), "frozen_rank": state.frozen_rank, "moments": names}
    ).encode()
    parts = [_START.pack(_MAGIC, len(header)), header]
    sizes = [("vector", state.vector, state.layout.size), ("frozen", frozen, frozen_size)]
    for what, values, size in sizes + [(name, state.moments[name], state.layout.size) for name in names]:
        if values.shape != (size,) or values.dtype != np.float32:
            raise CheckpointError(f"{what}: wanted {size:,} float32 values, got {values.shape} of {values.dtype}")
        if not np.isfinite(values).all():
            raise CheckpointError(f"{what} holds values that are not finite: such a state is not written")
        parts.append(values.astype("<f4", copy=False).tobytes())
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return b"".join([*parts, sha.digest()])


def decode_state(data: bytes) -> GlobalState:
    """Reads `encode_state`.

    Raises:
        CheckpointError: damaged, cut short, or another kind of file.
    """
    if len(data) < _START.size + _DIGEST or not data.startswith(_MAGIC):
        raise CheckpointError("this is not the state of a federation, or it is cut short", hint=_HINT)
    body = memoryview(data)[:-_DIGEST]
    if hashlib.sha256(body).digest() != data[-_DIGEST:]:
        raise CheckpointError("the state of the federation is damaged: its bytes are not those written", hint=_HINT)
    _, length = _START.unpack_from(body)
    if length > min(_MAX_HEADER, len(body) - _START.size):
        raise CheckpointError("the state of the federation is damaged: its header is too long", hint=_HINT)
    layout, frozen_rank, names = _header(body[_START.size : _START.size + length])
    values = body[_START.size + length :]
    frozen_size = layout.with_rank(frozen_rank).size if frozen_rank else 0
    sizes = [layout.size, frozen_size, *(layout.size for _ in names)]
    if len(values) != 4 * sum(sizes):
        raise CheckpointError(f"the state holds {len(values):,} bytes of values, its header says {4 * sum(sizes):,}")
    arrays = []
    for size in sizes:
        arrays.append(np.frombuffer(values[: 4 * size], "<f4").astype(np.float32))
        values = values[4 * size :]
    if not all(np.isfinite(array).all() for array in arrays):
        raise CheckpointError("the state of the federation holds values that are not finite", hint=_HINT)
    return GlobalState(
        layout=layout,
        vector=arrays[0],
        frozen_rank=frozen_rank,
        frozen=arrays[1] if frozen_rank else None,
        moments=dict(zip(names, arrays[2:], strict=True)),
    )


def state_digest(data: bytes) -> str:
    """SHA-256 of an encoded state, 64 hex digits: the name of its file."""
    return hashlib.sha256(data).hexdigest()


def _header(header: memoryview) -> tuple[AdapterLayout, int, list[str]]:
    try:
        document = parse_json_object(header, what="the header of the state", limit=_MAX_HEADER)
        if set(document) != {"layout", "frozen_rank", "moments"}:
            raise AdapterError("the header of the state has other fields than it should")
        frozen_rank, names = document["frozen_rank"], document["moments"]
        if type(frozen_rank) is not int or not 0 <= frozen_rank <= MAX_RANK:
            raise AdapterError("the header of the state: frozen_rank is no rank")
        if not isinstance(names, list) or len(names) > _MAX_MOMENTS or names != sorted(set(map(str, names))):
            raise AdapterError("the header of the state: moments are not a few names in order")
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise AdapterError("the header of the state: a moment's name is not one")
        layout = AdapterLayout.from_json(json.dumps(document["layout"]))
        if frozen_rank and 4 * layout.with_rank(frozen_rank).size > MAX_STATE_BYTES:
            raise AdapterError("the header of the state: too large")
    except AdapterError as fault:
        raise CheckpointError(fault.message, hint=_HINT) from fault
    return layout, frozen_rank, names
