"""A manifest as the text that is signed: an in-toto statement with OMS's predicate, version 1.0.

    subject     a name, which is for people, and one digest of all files
    predicate   serialization: file by file, SHA-256, no links; resources: every file with its digest, in order

Reference: https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import SIGNATURE
from neuralforge_common.signing.envelope import MAX_BUNDLE_BYTES
from neuralforge_common.signing.manifest import MAX_FILES, Manifest
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

PAYLOAD_TYPE = "application/vnd.in-toto+json"

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_WHAT = "the statement"


def encode_statement(name: str, manifest: Manifest) -> bytes:
    """The statement of a manifest; equal ones give equal bytes."""
    document = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": manifest.digest}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": digest} for file, digest in manifest.files.items()
            ],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_statement(payload: bytes) -> tuple[str, Manifest]:
    """The name and the manifest of a statement whose signature holds.

    What it would have ignored is not: `ignore_paths` is read over, every file of the folder counts.

    Raises:
        AdapterError: it is no such statement, or contradicts itself.
    """
    document = parse_json_object(payload, what=_WHAT, limit=MAX_BUNDLE_BYTES)
    _equal(document.get("_type"), _STATEMENT, "_type")
    _equal(document.get("predicateType"), _PREDICATE, "predicateType")
    subjects = document.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise AdapterError(f"{_WHAT}: wanted one subject, got {shortened(subjects)}")
    subject = _object(subjects[0], "subject")
    name = subject.get("name")
    if not isinstance(name, str) or len(name) > 1024 or not is_plain_text(name):
        raise AdapterError(f"{_WHAT}: subject: wanted one line of text as its name, got {shortened(name)}")
    predicate = _object(document.get("predicate"), "predicate")
    serialization = _object(predicate.get("serialization"), "serialization")
    _equal(serialization.get("method"), "files", "method")
    _equal(serialization.get("hash_type"), "sha256", "hash_type")
    _equal(serialization.get("allow_symlinks"), False, "allow_symlinks")
    manifest = _manifest(predicate.get("resources"))
    _equal(_object(subject.get("digest"), "subject").get("sha256"), manifest.digest, "the subject's digest")
    return name, manifest


def _manifest(resources: object) -> Manifest:
    if not isinstance(resources, list) or not 1 <= len(resources) <= MAX_FILES:
        count = f"{len(resources):,}" if isinstance(resources, list) else shortened(resources)
        raise AdapterError(f"{_WHAT}: wanted 1 to {MAX_FILES} resources, got {count}")
    files: dict[str, str] = {}
    for resource in resources:
        entry = _object(resource, "resources")
        name, digest = entry.get("name"), entry.get("digest")
        if not isinstance(name, str) or not isinstance(digest, str):
            raise AdapterError(f"{_WHAT}: resources: wanted a name and a digest, got {shortened(entry)}")
        _equal(entry.get("algorithm"), "sha256", f"the algorithm of {shortened(name)}")
        if name in files:
            raise AdapterError(f"{_WHAT}: {shortened(name)} stands there twice")
        files[name] = digest
    _check_order(files)
    try:
        return Manifest(files)
    except AdapterError as error:
        raise AdapterError(f"{_WHAT}: {error.message}", hint=error.hint) from error


def _check_order(names: Iterable[str]) -> None:
    # Another order has another digest for the very same files.
    names = list(names)
    if names != sorted(names):
        raise AdapterError(f"{_WHAT}: the resources do not stand in the order of their names")


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise AdapterError(f"{_WHAT}: {what}: wanted an object, got {shortened(value)}")
    return value


def _equal(value: object, wanted: str | bool, what: str) -> None:
    # `is` for false: 0 would be equal to it.
    if not (value is wanted if isinstance(wanted, bool) else value == wanted):
        raise AdapterError(f"{_WHAT}: {what}: wanted {wanted!r}, got {shortened(value)}")
