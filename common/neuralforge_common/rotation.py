"""What a node's old key signs when it hands over to a new one."""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from neuralforge_common.certificates import openssh_public_key

_DOMAIN = b"neuralforge rotate-key v1"
_SCHEME = ec.ECDSA(hashes.SHA384())


def sign_rotation(
    old_key: ec.EllipticCurvePrivateKey, *, name: str, new_key: ec.EllipticCurvePublicKey, time: float
) -> bytes:
    """Signs that the node `name` goes on with `new_key`, said at `time` (seconds since 1970)."""
    return old_key.sign(_message(name, new_key, time), _SCHEME)


def is_rotation_signed(
    signature: bytes,
    old_key: ec.EllipticCurvePublicKey,
    *,
    name: str,
    new_key: ec.EllipticCurvePublicKey,
    time: float,
) -> bool:
    """Whether the old key said so."""
    try:
        old_key.verify(signature, _message(name, new_key, time), _SCHEME)
    except InvalidSignature:
        return False
    return True


def _message(name: str, new_key: ec.EllipticCurvePublicKey, time: float) -> bytes:
    # Each part with its length before it: no two different statements give the same bytes. The domain keeps a
    # signature for one purpose from being used for another: the same key signs TLS handshakes and Flower's requests.
    parts = (_DOMAIN, name.encode(), openssh_public_key(new_key).encode(), struct.pack(">d", time))
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)
