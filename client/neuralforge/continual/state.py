"""What EWC keeps between sessions: one importance and one anchor for any number of sessions, privately."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from neuralforge.continual.fisher import Fisher
from neuralforge_common.adapter import MAX_STATE_BYTES, AdapterSpec, FloatArray
from neuralforge_common.codec import MAX_HEADER_BYTES, decode_tensors
from neuralforge_common.errors import AdapterError, CheckpointError
from neuralforge_common.key_files import read_private_file, write_private_file
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.strict_json import parse_json_object

_HEADER = "neuralforge_ewc"
_VERSION = 1
_BOUND = ("base_fingerprint", "rank", "alpha", "target_modules", "layers", "task")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EWCState:
    """How much each weight matters to what was learnt, in nats for a squared move of 1, and where the weights stood.

    `importance` is Schwarz et al. 2018's running sum ("Progress & Compress", eq. 9), of Fishers that are normalised
    first (as they say in §4.2, so that no task counts more for the size of its gradients); `anchor` is where the last
    session ended. Both are flat, (layout.size,).
    """

    spec: AdapterSpec
    layout: AdapterLayout
    importance: FloatArray
    anchor: FloatArray
    sessions: int

    @classmethod
    def after(cls, fisher: Fisher, previous: EWCState | None = None, *, decay: float = 0.9) -> EWCState:
        """The state after one more session: decay · F_old + F_new, around the weights as they are now.

        Raises:
            CheckpointError: `previous` belongs to another adapter.
        """
        importance, sessions = fisher.normalized(), 1
        if previous is not None:
            previous.check(fisher.spec, fisher.layout)
            importance = (decay * previous.importance + importance).astype(np.float32)
            sessions = previous.sessions + 1
        return cls(
            spec=fisher.spec, layout=fisher.layout, importance=importance, anchor=fisher.anchor, sessions=sessions
        )

    def check(self, spec: AdapterSpec, layout: AdapterLayout) -> None:
        """Raises CheckpointError, with both values, where this was kept for another base or kind of adapter."""
        for name in _BOUND:
            kept, wanted = getattr(self.spec, name), getattr(spec, name)
            if kept != wanted:
                raise CheckpointError(
                    f"what EWC has kept belongs to another adapter, of {name.replace('_', ' ')} {_shown(kept)}; "
                    f"this one's: {_shown(wanted)}",
                    hint="continue the adapter that it was kept for, or begin anew without it",
                )
        if self.layout != layout:
            raise CheckpointError(
                f"what EWC has kept belongs to another adapter: {self.layout.summary()}, this one: {layout.summary()}"
            )

    def save(self, path: Path) -> None:
        """Write the file whole, readable by its owner alone; raises StorageError."""
        facts: dict[str, Any] = {
            "version": _VERSION,
            "spec": asdict(self.spec),
            "layout": self.layout.to_json(),
            "sessions": self.sessions,
        }
        vectors = {"anchor": self.anchor, "importance": self.importance}
        facts["digest"] = _digest(facts, vectors)
        write_private_file(path, save(vectors, metadata={_HEADER: json.dumps(facts, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> EWCState:
        """Read the file.

        Raises:
            CheckpointError: it is damaged.
            StorageError: it cannot be read, or others than its owner may read it.
        """
        data = read_private_file(path, limit=2 * MAX_STATE_BYTES + MAX_HEADER_BYTES)
        try:
            return _read(data)
        except (AdapterError, ValueError, KeyError, TypeError) as fault:
            reason = fault.message if isinstance(fault, AdapterError) else str(fault)
            raise CheckpointError(
                f"{path} is damaged: {reason}",
                hint="remove it to go on without: the next session is then not held to what was learnt before it",
            ) from fault


def _read(data: bytes) -> EWCState:
    vectors, _ = decode_tensors(BytesIO(data), len(data), what="what EWC has kept")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # decode_tensors has checked it
    metadata = header.get("__metadata__")
    text = str(metadata.get(_HEADER)) if isinstance(metadata, dict) else ""
    facts = parse_json_object(text.encode(), what="its header", limit=MAX_HEADER_BYTES)
    if facts.pop("digest", None) != _digest(facts, vectors):
        raise AdapterError("its contents do not match their digest")
    if facts["version"] != _VERSION:
        raise AdapterError(f"its version is {facts['version']}, wanted {_VERSION}")
    layout = AdapterLayout.from_json(str(facts["layout"]))
    if any(vectors[name].shape != (layout.size,) for name in ("anchor", "importance")):
        raise AdapterError("its vectors have not the size of its layout")
    sessions = facts["sessions"]
    if not isinstance(sessions, int):
        raise AdapterError(f"sessions: wanted a whole number, got {sessions}")
    return EWCState(
        spec=AdapterSpec.from_document(facts["spec"]),
        layout=layout,
        importance=vectors["importance"],
        anchor=vectors["anchor"],
        sessions=sessions,
    )


def _digest(facts: dict[str, Any], vectors: dict[str, FloatArray]) -> str:
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, vector in sorted(vectors.items()):
        sha.update(f"\n{name} {vector.shape}\n".encode())
        sha.update(np.ascontiguousarray(vector, "<f4").data)
    return sha.hexdigest()


def _shown(value: object) -> str:
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).removeprefix("sha256:")[:16] or "not recorded"
