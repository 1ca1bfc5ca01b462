"""Verifying: who signed an adapter folder, and that it is what they signed, byte for byte.

Cheap before dear, and nothing is believed before the step that proves it:

    1 bundle     model.sig is one signed text and nothing else
    2 signer     the key that it names is trusted now
    3 signature  that key signed that text
    4 statement  the text is a manifest that agrees with itself
    5 files      the folder holds those files with those bytes, and nothing else
    6 adapter    it is a sound adapter

What is proved is the folder as it was read: one that others can write to can change right after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neuralforge_common.errors import AdapterError, SignatureError
from neuralforge_common.folder import SIGNATURE, AdapterFolder, open_member, read_adapter_folder
from neuralforge_common.signing.envelope import MAX_BUNDLE_BYTES, Envelope, decode_bundle
from neuralforge_common.signing.keys import PublicKey
from neuralforge_common.signing.manifest import Manifest, hash_files, list_files, open_folder
from neuralforge_common.signing.statement import PAYLOAD_TYPE, decode_statement
from neuralforge_common.strict_json import shortened

STEPS = ("bundle", "signer", "signature", "statement", "files", "adapter")

Trust = Callable[[str], PublicKey]
"""The trusted key of a fingerprint; raises SignatureError where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAdapter:
    """An adapter, what was signed of it, and by which key."""

    adapter: AdapterFolder
    manifest: Manifest
    key: PublicKey


def only(key: PublicKey) -> Trust:
    """Trusts one key and no other."""

    def trust(fingerprint: str) -> PublicKey:
        if fingerprint != key.fingerprint:
            raise SignatureError(
                f"it is signed by another key than the one given: sha256:{fingerprint}, wanted sha256:{key.fingerprint}"
            )
        return key

    return trust


def verify_adapter(path: Path, trust: Trust) -> VerifiedAdapter:
    """Verifies the signature of an adapter folder.

    Raises:
        SignatureError: a step failed; nothing of the folder is to be used.
    """
    path = Path(path)
    with _step(path, "bundle"):
        folder = open_folder(path)
    try:
        # 1. One signed text, and nothing else.
        with _step(path, "bundle"):
            envelope = _read_bundle(folder)
        # 2. The key that it names, which nothing proves yet, is one that is trusted.
        with _step(path, "signer", envelope.fingerprint):
            key = trust(envelope.fingerprint)
        # 3. That key signed it. From here on the text is its owner's.
        with _step(path, "signature", envelope.fingerprint):
            _check_signature(envelope, key)
        # 4. The text is a manifest. It is believed now, and still bounded: an owner's key may have been stolen.
        with _step(path, "statement", envelope.fingerprint):
            _, manifest = decode_statement(envelope.payload)
        # 5. The folder holds exactly that: names before contents, so that nothing is read that was not signed.
        with _step(path, "files", envelope.fingerprint):
            _check_names(list_files(folder), manifest)
            _check_contents(hash_files(folder, manifest.files), manifest)
    finally:
        os.close(folder)
    # 6. Signed is not sound: whoever signs can err, or be malicious.
    with _step(path, "adapter", envelope.fingerprint):
        adapter = read_adapter_folder(path)
    return VerifiedAdapter(adapter=adapter, manifest=manifest, key=key)


@contextmanager
def _step(path: Path, name: str, fingerprint: str = "") -> Iterator[None]:
    """Says which step it was that failed, and whose key the signature claims to be by."""
    try:
        yield
    except (AdapterError, OSError) as error:
        reason = error.message if isinstance(error, AdapterError) else f"cannot be read ({error.strerror or error})"
        reason = reason.removeprefix(f"{path}: ")
        if fingerprint and fingerprint not in reason:
            reason += f" [key sha256:{fingerprint}]"
        raise SignatureError(
            f"{path}: not verified, step {STEPS.index(name) + 1} of {len(STEPS)}, {name}: {reason}",
            hint=error.hint if isinstance(error, AdapterError) else "",
            step=name,
            fingerprint=fingerprint,
        ) from error


def _read_bundle(folder: int) -> Envelope:
    try:
        with open_member(folder, SIGNATURE, MAX_BUNDLE_BYTES) as (file, _):
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except FileNotFoundError as error:
        raise AdapterError(
            f"it is not signed: there is no {SIGNATURE}", hint="whoever made it: neuralforge sign-adapter"
        ) from error
    return decode_bundle(data, payload_type=PAYLOAD_TYPE, what=SIGNATURE)


def _check_signature(envelope: Envelope, key: PublicKey) -> None:
    if not envelope.is_by(key):
        raise AdapterError(
            "the signature does not hold: another key made it, or what it signs was changed",
            hint="ask for the adapter again",
        )


def _check_names(found: tuple[str, ...], manifest: Manifest) -> None:
    if extra := sorted(set(found) - manifest.files.keys()):
        raise AdapterError(
            f"{shortened(extra[0])} is in the folder and was not signed",
            hint="take it away, if you know where it comes from",
        )
    if missing := sorted(manifest.files.keys() - set(found)):
        raise AdapterError(f"{shortened(missing[0])} was signed and is missing", hint="ask for the adapter again")


def _check_contents(found: Manifest, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        if found.files[name] != digest:
            raise AdapterError(
                f"{shortened(name)} was changed after it was signed: its SHA-256 is {found.files[name][:12]}…, "
                f"signed was {digest[:12]}…",
                hint="ask for the adapter again",
            )
