"""Small adapters, signed, and the uploads that they are: the seeds of `scripts/fuzz.py`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.folder import AdapterMetadata, Evaluation, Scores, read_adapter_folder, write_adapter_folder
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.signing.keys import SigningKey
from neuralforge_common.signing.sign import sign_adapter

KEY = SigningKey(ec.derive_private_key(8472, ec.SECP256R1()))
"""No secret, and the same each time: so are the names of uploads, and an input that found something finds it again."""

_BETTER = Evaluation(base=Scores(perplexity=9.0), adapter=Scores(perplexity=6.0), samples=9)


def small_adapter(path: Path) -> Path:
    """One pair of matrices, signed."""
    generator = np.random.default_rng(0)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    state = AdapterState(
        {
            f"{stem}.lora_A.weight": generator.standard_normal((2, 8), dtype=np.float32),
            f"{stem}.lora_B.weight": generator.standard_normal((8, 2), dtype=np.float32),
        }
    )
    spec = AdapterSpec(base="acme/tiny", base_fingerprint="f" * 64, rank=2, alpha=4.0, target_modules=("q_proj",))
    write_adapter_folder(path, spec=spec, state=state, metadata=AdapterMetadata(name="small"))
    sign_adapter(path, KEY)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A version that could be published: what BeginPublish is told, and the blobs by their SHA-256."""

    request: messages.BeginPublishRequest
    blobs: dict[str, bytes]

    def parts(self, upload: str, digest: str, most: int | None = None) -> list[messages.UploadPart]:
        """The messages with which one blob, or its beginning, travels."""
        start = messages.UploadPart(start=messages.UploadStart(upload=upload, sha256=digest))
        return [start, messages.UploadPart(data=self.blobs[digest][:most])]


def make_upload(
    small: Path,
    place: Path,
    name: str,
    *,
    version: str = "1.0.0",
    visibility: int = messages.TEAM,
    evaluation: Evaluation | None = _BETTER,
) -> Upload:
    """The adapter `small` of the team blue, under a name and a version, signed; its folder is made in `place`."""
    adapter = read_adapter_folder(small)
    folder = place / f"{name}-{version}.lora"
    # Other weights in every version: what the registry has need not travel.
    scale = np.float32(1 + int(version.split(".")[1]))
    state = AdapterState({key: matrix * scale for key, matrix in adapter.state.items()})
    metadata = replace(AdapterMetadata(name=name, version=version), evaluation=evaluation)
    write_adapter_folder(folder, spec=adapter.spec, state=state, metadata=metadata)
    sign_adapter(folder, KEY)
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    digests = {each: hashlib.sha256(data).hexdigest() for each, data in contents.items()}
    files = [messages.File(name=each, sha256=digests[each], size=len(data)) for each, data in contents.items()]
    named = {"team": "blue", "name": name, "version": version, "visibility": visibility}
    request = messages.BeginPublishRequest(**named, tags=["spring"], languages=["java"], files=files)
    return Upload(request=request, blobs={digests[each]: data for each, data in contents.items()})
