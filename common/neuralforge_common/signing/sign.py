"""Signing: a folder that was found sound gets a `model.sig` over every file in it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from neuralforge_common.atomic import write_bytes_atomically
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import SIGNATURE, AdapterFolder, open_member, read_adapter_folder
from neuralforge_common.signing.envelope import MAX_BUNDLE_BYTES, decode_bundle, encode_bundle, seal
from neuralforge_common.signing.keys import SigningKey
from neuralforge_common.signing.manifest import Manifest, hash_files, list_files, open_folder
from neuralforge_common.signing.statement import PAYLOAD_TYPE, encode_statement


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAdapter:
    """What was signed; `replaced` is the fingerprint of another key whose signature stood there before."""

    adapter: AdapterFolder
    manifest: Manifest
    replaced: str | None


def sign_adapter(path: Path, key: SigningKey) -> SignedAdapter:
    """Signs an adapter folder. The same folder and key give the same bytes, wherever the folder lies.

    Raises:
        AdapterError: the folder is no sound adapter, or holds what no signature can cover.
        StorageError: the signature cannot be written; an older one is then as it was.
    """
    path = Path(path)
    # 1. Nothing is vouched for that could not be used.
    adapter = read_adapter_folder(path)
    folder = -1
    try:
        # 2. Every file, by name and content.
        folder = open_folder(path)
        manifest = hash_files(folder, list_files(folder, unfinished=True))
        replaced = _signed_by(folder)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
    finally:
        if folder >= 0:
            os.close(folder)
    # 3. The statement of them, signed. The adapter's own name is its subject: a folder may be called anything.
    envelope = seal(key, PAYLOAD_TYPE, encode_statement(adapter.metadata.name, manifest))
    # 4. Whole or not at all.
    write_bytes_atomically(path / SIGNATURE, encode_bundle(envelope))
    return SignedAdapter(
        adapter=adapter, manifest=manifest, replaced=replaced if replaced != envelope.fingerprint else None
    )


def _signed_by(folder: int) -> str | None:
    # Whatever stands there now is overwritten: one that cannot be read is nobody's.
    with contextlib.suppress(AdapterError, OSError), open_member(folder, SIGNATURE, MAX_BUNDLE_BYTES) as (file, _):
        return decode_bundle(file.read(), payload_type=PAYLOAD_TYPE, what=SIGNATURE).fingerprint
    return None
