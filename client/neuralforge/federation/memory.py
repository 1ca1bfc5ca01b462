"""What a client keeps from round to round: personal matrices, what a narrow wire format left unsent, what EWC holds.

One private file a round, written whole or not at all, the newest `KEPT` of them. A round that is repeated begins from
the same entry as before, and so ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from neuralforge_common.adapter import MAX_STATE_BYTES, FloatArray
from neuralforge_common.atomic import storage_errors
from neuralforge_common.codec import decode_tensors
from neuralforge_common.errors import AdapterError
from neuralforge_common.key_files import make_private_folder, read_private_file, write_private_file
from neuralforge_common.strict_json import parse_json_object

KEPT = 3
_NAME = re.compile(r"([0-9a-f]{16})-(\d{8})\.safetensors")
_HEADER = "neuralforge_memory"
_MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Whose memory it is: with another base, other modules or another rank its numbers mean nothing."""

    federation: str
    base_fingerprint: str
    layout_digest: str

    @property
    def digest(self) -> str:
        """16 hex digits, for a file's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class Memory:
    """A folder of entries: round → named vectors. `tell` hears of entries that are damaged and passed over."""

    def __init__(self, folder: Path, *, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell

    def recall(self, binding: Binding, *, before: int) -> Mapping[str, FloatArray]:
        """The newest whole entry of a round before that one; empty where there is none.

        Raises:
            StorageError: others than its owner may use the file.
        """
        for number, path in reversed(self._entries(binding)):
            if number >= before:
                continue
            try:
                return _read(read_private_file(path, limit=4 * MAX_STATE_BYTES + _MAX_HEADER_BYTES), binding, number)
            except AdapterError as fault:
                self._tell(f"what this client kept in round {number} is passed over: {path}: {fault.message}")
        return {}

    def keep(self, binding: Binding, number: int, vectors: Mapping[str, FloatArray]) -> None:
        """Put down the entry of a round; entries of later rounds, which will be done again, go.

        Raises:
            StorageError: the folder is not private, or the disk is full, read-only or not writable.
        """
        make_private_folder(self._folder)
        facts = asdict(binding) | {"round": number, "digest": _digest(binding, number, vectors)}
        data = save(
            {name: np.ascontiguousarray(vector, np.float32) for name, vector in sorted(vectors.items())},
            metadata={_HEADER: json.dumps(facts, sort_keys=True)},
        )
        write_private_file(self._folder / f"{binding.digest}-{number:08d}.safetensors", data)
        entries = self._entries(binding)
        kept = [path for found, path in entries if found <= number][-KEPT:]
        for _, path in entries:
            if path not in kept:
                with storage_errors(path):
                    path.unlink(missing_ok=True)

    def _entries(self, binding: Binding) -> list[tuple[int, Path]]:
        if not self._folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[2]), path) for match, path in found if match and match[1] == binding.digest)


def _read(data: bytes, binding: Binding, number: int) -> Mapping[str, FloatArray]:
    vectors, _ = decode_tensors(BytesIO(data), len(data), what="the entry")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # decode_tensors has checked it
    metadata = header.get("__metadata__")
    text = str(metadata.get(_HEADER)) if isinstance(metadata, dict) else ""
    facts = parse_json_object(text.encode(), what="the entry's header", limit=_MAX_HEADER_BYTES)
    if facts != asdict(binding) | {"round": number, "digest": _digest(binding, number, vectors)}:
        raise AdapterError("the entry does not match its digest")
    return vectors


def _digest(binding: Binding, number: int, vectors: Mapping[str, FloatArray]) -> str:
    sha = hashlib.sha256(f"{binding.digest} {number}".encode())
    for name, vector in sorted(vectors.items()):
        sha.update(f"\n{name} {vector.shape}\n".encode())
        sha.update(np.ascontiguousarray(vector, "<f4").data)
    return sha.hexdigest()
