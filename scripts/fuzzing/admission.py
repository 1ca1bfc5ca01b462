"""Who may be given what, from the request alone: what `scripts/fuzz.py` holds the enrolment's answers against.

Said once more, in other words than the server's: nothing here asks the registry of nodes whether it would agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fuzzing.federation import MEMBERS, MOMENT, TOKENS, Rows, key_of
from neuralforge_common.certificates import openssh_public_key
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.rotation import is_rotation_signed

_VALID = {TOKENS[name]: name for name in ("erin", "carol")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A certificate that somebody is given, and what the registry of nodes holds then, by the certificate's number."""

    name: str
    key: ec.EllipticCurvePublicKey
    rows: Callable[[str], Rows]


def joining(before: Rows, request: messages.JoinRequest) -> Given | None:
    """What a valid token that was never used gives; None where the join must be refused."""
    name, key = _VALID.get(request.token), _fresh_key(before, request.signing_request_pem)
    if name is None or key is None or len(request.identity) not in (0, 32):
        return None
    digest = hashlib.sha256(request.token.encode()).digest()

    def rows(serial: str) -> Rows:
        spent = {digest: (*before["invitations"][digest][:3], MOMENT)}
        identity = {name: (name, request.identity)} if request.identity else {}
        others = {each: row for each, row in before["identities"].items() if each != name}
        return {
            "invitations": before["invitations"] | spent,
            "credentials": before["credentials"] | _begun(before, name, key, serial),
            "identities": others | identity,
        }

    return Given(name=name, key=key, rows=rows)


def rotating(before: Rows, caller: str, serial: int, request: messages.RotateKeyRequest) -> Given | None:
    """What the caller, whose certificate has this number, is given; None where the rotation must be refused."""
    old = next((row for row in before["credentials"].values() if row[3] == f"{serial:x}"), None)
    key = _requested_key(request.signing_request_pem)
    if old is None or key is None or not MOMENT - 300 <= request.time <= MOMENT + 300 or len(request.signature) > 1024:
        return None
    signed = {"name": caller, "new_key": key, "time": request.time}
    if not is_rotation_signed(request.signature, key_of(caller).public_key(), **signed):
        return None
    if caller == "dave" and key == key_of("dave's next").public_key():
        return Given(name=caller, key=key, rows=lambda _: before)  # the same answer again, should the first be lost
    if caller not in MEMBERS or _fresh_key(before, request.signing_request_pem) is None:
        return None

    def rows(serial: str) -> Rows:
        begun = _begun(before, caller, key, serial)
        ended = {old[0]: (*old[:5], MOMENT, "rotated", *begun)}
        return before | {"credentials": before["credentials"] | ended | begun}

    return Given(name=caller, key=key, rows=rows)


def _begun(before: Rows, name: str, key: ec.EllipticCurvePublicKey, serial: str) -> dict[int, tuple[object, ...]]:
    number = max(before["credentials"]) + 1
    return {number: (number, name, openssh_public_key(key), serial, MOMENT, None, None, None)}


def _fresh_key(before: Rows, pem: bytes) -> ec.EllipticCurvePublicKey | None:
    """The key that a request asks for, unless it is or was anybody's."""
    key = _requested_key(pem)
    known = {row[2] for row in before["credentials"].values()}
    return None if key is None or openssh_public_key(key) in known else key


def _requested_key(pem: bytes) -> ec.EllipticCurvePublicKey | None:
    """The key of a request that this key has signed."""
    key, signed = named_key(pem)
    return key if signed and len(pem) <= 8192 else None


def named_key(pem: bytes) -> tuple[ec.EllipticCurvePublicKey | None, bool]:
    """The P-384 key that a request names, and whether it has signed the request."""
    try:
        request = x509.load_pem_x509_csr(pem)
        key, signed = request.public_key(), request.is_signature_valid
    except Exception:  # cryptography has many
        return None, False
    fits = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"
    return (key if fits else None), signed
