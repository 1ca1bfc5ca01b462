"""Small adapters, and signatures that say what a test wants them to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.folder import SIGNATURE, AdapterMetadata, write_adapter_folder
from neuralforge_common.signing.envelope import decode_bundle, encode_bundle, seal
from neuralforge_common.signing.keys import SigningKey
from neuralforge_common.signing.statement import PAYLOAD_TYPE

Document = dict[str, Any]


def write_small_adapter(path: Path, *, name: str = "mine", seed: int = 7) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {}
    for module in ("q_proj", "v_proj"):
        stem = f"base_model.model.model.layers.0.self_attn.{module}"
        arrays[f"{stem}.lora_A.weight"] = rng.standard_normal((4, 16), dtype=np.float32)
        arrays[f"{stem}.lora_B.weight"] = rng.standard_normal((12, 4), dtype=np.float32)
    spec = AdapterSpec(
        base="acme/tiny",
        base_revision="a" * 40,
        base_fingerprint="f" * 64,
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=("q_proj", "v_proj"),
    )
    write_adapter_folder(path, spec=spec, state=AdapterState(arrays), metadata=AdapterMetadata(name=name))
    return path


def change_bundle(folder: Path, change: Callable[[Document], object]) -> None:
    """Rewrite what stands around the signature, which nothing signs."""
    document = json.loads((folder / SIGNATURE).read_bytes())
    change(document)
    (folder / SIGNATURE).write_text(json.dumps(document))


def sign_payload(folder: Path, key: SigningKey, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> None:
    """Sign whatever text it is."""
    (folder / SIGNATURE).write_bytes(encode_bundle(seal(key, payload_type, payload)))


def statement_of(folder: Path) -> Document:
    envelope = decode_bundle((folder / SIGNATURE).read_bytes(), payload_type=PAYLOAD_TYPE, what=SIGNATURE)
    document: Document = json.loads(envelope.payload)
    return document


def change_statement(folder: Path, key: SigningKey, change: Callable[[Document], object]) -> None:
    """Rewrite what is signed, as only the key's owner can."""
    document = statement_of(folder)
    change(document)
    sign_payload(folder, key, json.dumps(document).encode())
