"""Everything worth knowing of an adapter, as one JSON document."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuralforge.inspection.found import Found
from neuralforge.inspection.spectrum import by_kind, by_layer, spectra
from neuralforge_common.folder import SIGNATURE, AdapterFolder
from neuralforge_common.privacy import PrivacyStatement


def facts_of(folder: AdapterFolder) -> dict[str, Any]:
    """What its metadata say, how its weights are applied, and the spectra of its ΔW, by name, layer and module."""
    metadata, spec = folder.metadata, folder.spec
    modules = spectra(spec, folder.state)
    return {
        "path": str(folder.path),
        "name": metadata.name,
        "version": metadata.version,
        "description": metadata.description,
        "author": metadata.author,
        "license": metadata.license,
        "created": metadata.created,
        "neuralforge_version": metadata.neuralforge_version,
        "base": {
            "name": spec.base,
            "revision": spec.base_revision,
            "fingerprint": spec.base_fingerprint or None,
            "task": spec.task,
        },
        "lora": {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "scaling": spec.scaling,
            "dropout": spec.dropout,
            "target_modules": list(spec.target_modules),
            "layers": None if spec.layers is None else list(spec.layers),
        },
        "parameters": sum(array.size for array in folder.state.values()),
        "size_mb": metadata.size_mb,
        "digests": dict(metadata.digests),
        "tokenizer": folder.tokenizer_path is not None,
        "training_samples": metadata.training_samples,
        "dataset_digest": metadata.dataset_digest,
        "accuracy": metadata.accuracy,
        "evaluation": asdict(metadata.evaluation) if metadata.evaluation else None,
        "privacy": privacy_facts(metadata.privacy),
        "federation_rounds": metadata.federation_rounds,
        "parent": asdict(metadata.parent) if metadata.parent else None,
        "composition": asdict(metadata.composition) if metadata.composition else None,
        "signed": is_signed(folder.path),
        "notices": list(folder.notices),
        "delta": {
            "norm": sum(module.norm**2 for module in modules) ** 0.5,
            "kinds": [asdict(group) for group in by_kind(modules)],
            "layers": [asdict(group) for group in by_layer(modules)],
            "modules": [asdict(module) for module in modules],
        },
    }


def facts_in_a_list(found: Found) -> dict[str, Any]:
    """What a list of adapters says of one; a damaged one has its path and its fault alone."""
    if found.claims is None:
        return {"path": str(found.path), "fault": found.fault}
    claims, metadata = found.claims, found.claims.metadata
    return {
        "path": str(found.path),
        "name": metadata.name if metadata else found.path.absolute().name.removesuffix(".lora"),
        "version": metadata.version if metadata else None,
        "base": (metadata.base_model if metadata else "") or claims.spec.base or None,
        "rank": claims.spec.rank,
        "size_mb": round(claims.weights_bytes / 1e6, 3),
        "accuracy": metadata.accuracy if metadata else None,
        "privacy": privacy_facts(metadata.privacy if metadata else None),
        "signed": is_signed(found.path),
    }


def privacy_facts(statement: PrivacyStatement | None) -> dict[str, Any] | None:
    """A statement with the sentence that it makes, None where there is none."""
    return None if statement is None else asdict(statement) | {"statement": str(statement)}


def is_signed(path: Path) -> bool:
    """Whether a signature lies in the folder; whether it holds is for `neuralforge adapters verify` to say."""
    return (path / SIGNATURE).is_file()
