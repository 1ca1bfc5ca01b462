"""A signed text as OMS keeps it: a DSSE envelope inside a Sigstore bundle, one JSON object.

    mediaType             application/vnd.dev.sigstore.bundle.v0.3+json
    verificationMaterial  publicKey.hint: the fingerprint of the key; tlogEntries: none, we sign without a network
    dsseEnvelope          payload (base64), payloadType, signatures: one, over the pre-authentication encoding

Nothing here is signed but payload and payloadType, so everything else must be exactly what the format has: no key more,
no base64 that has a second spelling.

References: DSSE 1.0.2 (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md),
https://docs.sigstore.dev/about/bundle, https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass

from neuralforge_common.errors import AdapterError
from neuralforge_common.signing.keys import PublicKey, SigningKey
from neuralforge_common.strict_json import parse_json_object, shortened

MAX_BUNDLE_BYTES = 256 * 1024

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A text of some type and one signature, by the key of a fingerprint; what it says is not yet to be believed."""

    payload_type: str
    payload: bytes
    signature: bytes
    fingerprint: str

    def is_by(self, key: PublicKey) -> bool:
        """Whether this key has signed payload and type."""
        return key.has_signed(_pre_authentication(self.payload_type, self.payload), self.signature)


def seal(key: SigningKey, payload_type: str, payload: bytes) -> Envelope:
    """Signs a text."""
    return Envelope(
        payload_type=payload_type,
        payload=payload,
        signature=key.sign(_pre_authentication(payload_type, payload)),
        fingerprint=key.public.fingerprint,
    )


def encode_bundle(envelope: Envelope) -> bytes:
    """The bundle's JSON; equal envelopes give equal bytes."""
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": envelope.fingerprint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _to_base64(envelope.payload),
            "payloadType": envelope.payload_type,
            "signatures": [{"sig": _to_base64(envelope.signature), "keyid": ""}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode_bundle(data: bytes, *, payload_type: str, what: str, limit: int = MAX_BUNDLE_BYTES) -> Envelope:
    """Reads a bundle of at most `limit` bytes that must hold a text of one type; `what` names it in errors.

    No signature is checked here.

    Raises:
        AdapterError: it is no such bundle, or holds anything else besides.
    """
    document = parse_json_object(data, what=what, limit=limit)
    _only(document, {"mediaType", "verificationMaterial", "dsseEnvelope"}, what)
    _equal(document["mediaType"], _MEDIA_TYPE, f"{what}: mediaType")
    material = _object(document["verificationMaterial"], f"{what}: verificationMaterial")
    if "publicKey" not in material:
        raise AdapterError(
            f"{what}: wanted a signature by a key (publicKey), got {shortened(next(iter(material), 'nothing'))}",
            hint="signatures by certificates need Sigstore's network; ask for one by a key",
        )
    _only(material, {"publicKey", "tlogEntries"}, f"{what}: verificationMaterial", optional={"tlogEntries"})
    if material.get("tlogEntries", []) != []:
        raise AdapterError(f"{what}: tlogEntries: wanted none: a log's entries are not covered by the signature")
    public = _object(material["publicKey"], f"{what}: publicKey")
    _only(public, {"hint"}, f"{what}: publicKey")
    fingerprint = public["hint"]
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise AdapterError(f"{what}: publicKey.hint: wanted 64 hex digits, got {shortened(fingerprint)}")
    dsse = _object(document["dsseEnvelope"], f"{what}: dsseEnvelope")
    _only(dsse, {"payload", "payloadType", "signatures"}, f"{what}: dsseEnvelope")
    _equal(dsse["payloadType"], payload_type, f"{what}: payloadType")
    signatures = dsse["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        count = len(signatures) if isinstance(signatures, list) else shortened(signatures)
        raise AdapterError(f"{what}: signatures: wanted one, got {count}")
    signature = _object(signatures[0], f"{what}: signatures")
    _only(signature, {"sig", "keyid"}, f"{what}: signatures", optional={"keyid"})
    _equal(signature.get("keyid", ""), "", f"{what}: keyid")
    return Envelope(
        payload_type=payload_type,
        payload=_from_base64(dsse["payload"], f"{what}: payload"),
        signature=_from_base64(signature["sig"], f"{what}: sig"),
        fingerprint=fingerprint,
    )


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: lengths before the parts, so that no two pairs of type and payload give the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: object, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError as error:
        raise AdapterError(f"{what}: not valid base64 ({error})") from error
    # Unused bits in the last digit would be a second spelling of the same bytes.
    if not data or _to_base64(data) != text:
        raise AdapterError(f"{what}: wanted bytes in base64, got {shortened(text)}")
    return data


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise AdapterError(f"{what}: wanted an object, got {shortened(value)}")
    return value


def _only(
    document: dict[str, object], known: set[str], what: str, *, optional: frozenset[str] | set[str] = frozenset()
) -> None:
    if strange := sorted(document.keys() - known):
        raise AdapterError(f"{what}: {shortened(strange[0])} does not belong there")
    if missing := sorted(known - optional - document.keys()):
        raise AdapterError(f"{what}: {missing[0]} is missing")


def _equal(value: object, wanted: str, what: str) -> None:
    if value != wanted:
        raise AdapterError(f"{what}: wanted {wanted!r}, got {shortened(value)}")
