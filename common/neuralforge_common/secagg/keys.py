"""The keys of secure aggregation: an identity that stays, two pairs that live for one attempt, what follows from them.

    identity   Ed25519, made when a machine joins; signs the two below and sets of survivors; pinned by the others
    mask       X25519, fresh: with another's it gives the key of the mask between the two
    seal       X25519, fresh: with another's it gives the key that seals shares for that one

Every derived key is HKDF-SHA256's (RFC 5869) with the purpose, the attempt and the two parties in its info, so none of
them is ever used twice or for anything else.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from neuralforge_common.errors import FederationError, StorageError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
SUITE = b"neuralforge secure aggregation 1"

Purpose = Literal["pair mask", "own mask", "sealed shares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One attempt at a round as everybody in it must see it; `digest` covers the plan and all public keys."""

    round: int
    nonce: str
    digest: bytes


def framed(*parts: bytes | str) -> bytes:
    """Parts with their lengths in front: no two lists of parts give the same bytes."""
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    return b"".join(struct.pack(">I", len(part)) + part for part in encoded)


def agreed_key(own: X25519PrivateKey, other: bytes, purpose: Purpose, view: View, parties: tuple[str, str]) -> bytes:
    """The key of 256 bits that two parties have in common for one purpose, in the order in which they are named.

    Raises:
        FederationError: the other's public key is none, or one of those with which every secret is zero.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as fault:
        raise FederationError(f"the public keys of {' and '.join(parties)} give no secret") from fault
    return derived_key(secret, purpose, view, parties)


def gives_secrets(key: bytes) -> bool:
    """Whether others can agree on a secret with this public key: not with one of those that make each one zero."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def derived_key(secret: bytes, purpose: Purpose, view: View, parties: tuple[str, ...]) -> bytes:
    """A key of 256 bits for one purpose, from a secret of as many."""
    info = framed(SUITE, purpose, view.digest, str(view.round), view.nonce, *parties)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def seal(key: bytes, shares: bytes, view: View, *, sender: str, receiver: str) -> bytes:
    """Shares for one receiver, under AES-256-GCM. The key seals this alone, so the nonce may be zero."""
    return AESGCM(key).encrypt(bytes(12), shares, _associated(view, sender, receiver))


def unseal(key: bytes, sealed: bytes, view: View, *, sender: str, receiver: str) -> bytes:
    """What `seal` has sealed.

    Raises:
        FederationError: another sender, receiver, round or attempt, or a changed byte.
    """
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, _associated(view, sender, receiver))
    except (InvalidTag, ValueError) as fault:
        raise FederationError(f"the shares from {sender} were changed on their way, or are another round's") from fault


def commitment(seed: bytes, name: str) -> bytes:
    """What a client promises its seed with: 256 bits of a hash of as many that nobody knows."""
    return hashlib.sha256(framed(SUITE, "seed", name, seed)).digest()


def is_signed(identity: bytes, signature: bytes, statement: bytes) -> bool:
    """Whether an identity's key has signed a statement."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_bytes(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def identity_pem(key: Ed25519PrivateKey) -> bytes:
    """An identity as PKCS 8, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_identity(pem: bytes, what: str) -> Ed25519PrivateKey:
    """Reads `identity_pem`; `what` names its file in errors.

    Raises:
        StorageError: it is none.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as fault:
        raise StorageError(f"{what}: it holds no private key that can be read") from fault
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{what}: wanted an Ed25519 key, got {type(key).__name__}")
    return key


def fingerprint(identity: bytes) -> str:
    """What people compare of an identity: 128 bits of its SHA-256, in groups of four digits."""
    digits = hashlib.sha256(identity).hexdigest()[:32]
    return "-".join(digits[place : place + 4] for place in range(0, 32, 4))


def _associated(view: View, sender: str, receiver: str) -> bytes:
    return framed(SUITE, view.digest, str(view.round), view.nonce, sender, receiver)
