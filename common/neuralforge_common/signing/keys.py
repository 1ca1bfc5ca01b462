"""Keys that sign: P-256, which every OMS verifier reads, and Ed25519, which only ours does.

A key is known by its fingerprint: SHA-256 of its public half as PEM, which is what OMS bundles name a key by and what
`sha256sum KEY.pub` prints.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from neuralforge_common.atomic import storage_errors, sync_descriptor, sync_folder, write_bytes_atomically
from neuralforge_common.errors import StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder, write_private_file

Kind = Literal["p256", "ed25519"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_KEY_BYTES = 16 * 1024

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The half that verifies; two are equal when their PEM is."""

    pem: bytes
    kind: Kind
    _key: ec.EllipticCurvePublicKey | Ed25519PublicKey = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(self.pem).hexdigest()

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's other half made a signature of a message."""
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, message)
            else:
                self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The half that signs."""

    _key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return _public(self._key.public_key(), "the key")

    def sign(self, message: bytes) -> bytes:
        """A signature; the same one each time: ECDSA's nonce comes from key and message (RFC 6979, Ed25519: RFC 8032).

        Raises:
            StorageError: the OpenSSL below `cryptography` is too old for that.
        """
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        try:
            return self._key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm as error:
            raise StorageError(
                "this build of cryptography has no deterministic ECDSA",
                hint="it needs OpenSSL 3.2 or later, which the wheel from PyPI has; or use an Ed25519 key",
            ) from error

    def to_pem(self, passphrase: str | None) -> bytes:
        """PKCS 8, encrypted where there is a passphrase."""
        lock = serialization.BestAvailableEncryption(_encoded(passphrase)) if passphrase else None
        return self._key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, lock or serialization.NoEncryption())


def generate_key(kind: Kind) -> SigningKey:
    """A fresh key."""
    return SigningKey(Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1()))


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key takes a passphrase to read."""
    return b"ENCRYPTED" in pem


def decode_signing_key(pem: bytes, what: str, passphrase: str | None = None) -> SigningKey:
    """Reads a private key as PKCS 8; `what` names its file in errors. `passphrase` counts where it is encrypted.

    Raises:
        StorageError: it is none, of another kind, or locked by another passphrase.
    """
    locked = is_encrypted(pem)
    try:
        key = serialization.load_pem_private_key(pem, _encoded(passphrase or "") if locked else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if locked:
            raise StorageError(f"{what}: this is not the passphrase that the key is locked by") from error
        raise StorageError(
            f"{what}: it holds no private key that can be read", hint="neuralforge keygen makes one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise _other_kind(key, what)
    _public(key.public_key(), what)
    return SigningKey(key)


def decode_public_key(pem: bytes, what: str) -> PublicKey:
    """Reads a public key as PEM; `what` names its file in errors.

    Raises:
        StorageError: it is none, or of another kind.
    """
    if b"PRIVATE KEY" in pem:
        raise StorageError(f"{what} is a private key: wanted the public one", hint="it lies beside it, as NAME.pub")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise StorageError(f"{what}: it holds no public key that can be read (wanted PEM)") from error
    return _public(key, what)


def read_public_key(path: Path) -> PublicKey:
    """Reads a public key's file.

    Raises:
        StorageError: it is missing or none.
    """
    try:
        with path.open("rb") as file:
            return decode_public_key(file.read(MAX_KEY_BYTES), str(path))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def public_path(path: Path) -> Path:
    """Where the public half of a private key's file lies: NAME.key → NAME.pub.

    Raises:
        StorageError: that is the very same place.
    """
    if path.suffix == ".pub":
        raise StorageError(f"{path}: .pub is for the public half", hint="name the private key NAME.key")
    return path.with_suffix(".pub")


def check_free(path: Path) -> None:
    """Checks that a key pair can be written without overwriting anything.

    Raises:
        StorageError: one of its two files is there.
    """
    for place in (path, public_path(path)):
        if os.path.lexists(place):
            raise _in_the_way(place)


def write_key_pair(path: Path, key: SigningKey, *, passphrase: str | None, replace: bool) -> None:
    """Writes a private key for its owner alone (0600), and its public half beside it.

    Raises:
        StorageError: one of the two is there and `replace` is not said, or the disk refuses.
    """
    public = public_path(path)
    if not replace:
        check_free(path)
    if not path.parent.exists():
        make_private_folder(path.parent)
    pem = key.to_pem(passphrase)
    if replace:
        write_private_file(path, pem)
    else:
        _create_private_file(path, pem)
    write_bytes_atomically(public, key.public.pem)


def _create_private_file(path: Path, data: bytes) -> None:
    # Not by renaming into place: that would overwrite a key that another process has made meanwhile.
    with storage_errors(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
        except FileExistsError as error:
            raise _in_the_way(path) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                sync_descriptor(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _in_the_way(path: Path) -> StorageError:
    return StorageError(
        f"{path} is there already: a key is not overwritten",
        hint="choose another --key, or --force to lose the old one for good",
    )


def _public(key: object, what: str) -> PublicKey:
    if isinstance(key, Ed25519PublicKey):
        kind: Kind = "ed25519"
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        kind = "p256"
    else:
        raise _other_kind(key, what)
    return PublicKey(key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo), kind, key)


def _other_kind(key: object, what: str) -> StorageError:
    elliptic = isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey)
    name = key.curve.name if elliptic else type(key).__name__  # type: ignore[attr-defined]  # `elliptic` says so
    return StorageError(f"{what}: wanted a key on P-256 or Ed25519, got {name}", hint="neuralforge keygen makes one")


def _encoded(passphrase: str) -> bytes:
    return passphrase.encode("utf-8", "surrogateescape")
