"""Where the key that locks a vault comes from: the system's keyring, a passphrase, or a file. Never from nowhere.

Each of them gives a key-encryption key of 32 bytes. It locks the vault's own random data key and nothing else, so that
a vault is erased by destroying a few bytes; see `vault`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from neuralforge_common.errors import StorageError, VaultError
from neuralforge_common.key_files import read_private_file, write_private_file

PASSPHRASE = "NEURALFORGE_PASSPHRASE"  # noqa: S105  # the variable's name
SERVICE = "neuralforge-replay"
KEY_BYTES = 32

ARGON2: Mapping[str, int] = {"iterations": 3, "lanes": 4, "memory_kib": 64 * 1024}
"""RFC 9106, §4, the second recommended option: 64 MiB."""
_ARGON2_LIMITS: Mapping[str, int] = {"iterations": 64, "lanes": 64, "memory_kib": 4 * 1024 * 1024}

NO_KEY_HINT = (
    f"set {PASSPHRASE}, or name a key file with --key-file FILE (it is made where it is missing), "
    "or pip install keyring on a machine that has one"
)


class Key(Protocol):
    """One source of key-encryption keys; `kind` stands in the vault's header."""

    kind: str

    def describe(self) -> str:
        """Where the key is, for a person."""
        ...

    def make(self, vault: str) -> tuple[dict[str, Any], bytes]:
        """For a vault that is being made: what its header must remember, and the key."""
        ...

    def get(self, vault: str, facts: Mapping[str, Any]) -> bytes:
        """For a vault with such a header; raises VaultError where this source has no key for it."""
        ...

    def forget(self, vault: str) -> None:
        """The vault is erased: remove what was kept for it alone."""
        ...


@dataclass(frozen=True, slots=True)
class PassphraseKey:
    """Argon2id (RFC 9106) of a passphrase."""

    passphrase: str
    kind = "passphrase"

    def describe(self) -> str:
        """In words."""
        return "a passphrase (Argon2id)"

    def make(self, vault: str) -> tuple[dict[str, Any], bytes]:
        """A fresh salt."""
        if not self.passphrase:
            raise VaultError("the passphrase is empty", hint=NO_KEY_HINT)
        facts = {"salt": secrets.token_hex(16), **ARGON2}
        return facts, self.get(vault, facts)

    def get(self, vault: str, facts: Mapping[str, Any]) -> bytes:
        """The key that this passphrase gives with the header's salt and costs."""
        del vault  # the salt already makes two vaults' keys differ
        costs: dict[str, Any] = {name: facts.get(name) for name in ARGON2}
        salt = facts.get("salt")
        sane = all(type(costs[name]) is int and 1 <= costs[name] <= limit for name, limit in _ARGON2_LIMITS.items())
        if not (sane and isinstance(salt, str) and re.fullmatch("[0-9a-f]{32}", salt)):
            raise VaultError(f"the costs of Argon2id in the header are out of bounds: {costs}")
        try:
            function = Argon2id(
                salt=bytes.fromhex(salt),
                length=KEY_BYTES,
                iterations=facts["iterations"],
                lanes=facts["lanes"],
                memory_cost=facts["memory_kib"],
            )
            return function.derive(self.passphrase.encode("utf-8", "surrogateescape"))
        except UnsupportedAlgorithm as error:
            raise VaultError(
                "this build of cryptography has no Argon2id", hint="it needs OpenSSL 3.2 or later; or use --key-file"
            ) from error

    def forget(self, vault: str) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A private file with 64 hex digits."""

    path: Path
    kind = "key-file"

    def describe(self) -> str:
        """With its path."""
        return f"the key file {self.path}"

    def make(self, vault: str) -> tuple[dict[str, Any], bytes]:
        """The file's key; the file is made where it is missing."""
        if not self.path.exists():
            write_private_file(self.path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        return {}, self.get(vault, {})

    def get(self, vault: str, facts: Mapping[str, Any]) -> bytes:
        """The file's key."""
        del vault, facts
        try:
            text = read_private_file(self.path, limit=1024).decode("ascii", "replace").strip()
        except StorageError as error:
            hint = error.hint or "name the file with which the replay buffer was made"
            raise VaultError(error.message, hint=hint) from error
        if not re.fullmatch("[0-9a-fA-F]{64}", text):
            raise VaultError(f"{self.path} is no key file: wanted 64 hex digits", hint="openssl rand -hex 32 makes one")
        return bytes.fromhex(text)

    def forget(self, vault: str) -> None:
        """The file may lock other vaults as well: it stays."""


@dataclass(frozen=True, slots=True)
class KeyringKey:
    """A random key in the system's keyring, one for each vault; see `system_keyring`."""

    keyring: Any
    kind = "keyring"

    def describe(self) -> str:
        """With the keyring's name."""
        return f"the system's keyring ({getattr(self.keyring, 'name', type(self.keyring).__name__)})"

    def make(self, vault: str) -> tuple[dict[str, Any], bytes]:
        """A fresh key, put into the keyring."""
        key = secrets.token_hex(KEY_BYTES)
        self._ask("set_password", vault, key)
        return {}, bytes.fromhex(key)

    def get(self, vault: str, facts: Mapping[str, Any]) -> bytes:
        """The vault's key."""
        del facts
        found = self._ask("get_password", vault)
        if not (isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found)):
            raise VaultError(
                f"the system's keyring holds no key for this replay buffer ({SERVICE}, {vault})",
                hint="without it nothing can read the buffer; `neuralforge replay purge` removes it",
            )
        return bytes.fromhex(found)

    def forget(self, vault: str) -> None:
        """Delete the vault's key."""
        if self._ask("get_password", vault) is not None:
            self._ask("delete_password", vault)

    def _ask(self, what: str, vault: str, *rest: str) -> object:
        try:
            return getattr(self.keyring, what)(SERVICE, vault, *rest)
        except Exception as error:  # keyring's backends raise errors of their own: locked, refused, no bus
            raise VaultError(
                f"the system's keyring does not answer: {type(error).__name__}: {error}",
                hint=f"unlock it; a new replay buffer can have a passphrase instead: {NO_KEY_HINT}",
            ) from error


def system_keyring() -> Any | None:
    """The system's keyring, None where the package `keyring` is absent or has found nothing that keeps a secret.

    Backends that fail, forget, or write into a plain file have a priority below 1, which is keyring's own mark for
    "not recommended". A chain of backends has 10 whatever it is made of, so its members are looked at one by one.
    """
    try:
        import keyring
    except ImportError:
        return None
    backend = keyring.get_keyring()
    members = getattr(backend, "backends", None) or [backend]
    return max((member for member in members if _priority(member) >= 1), key=_priority, default=None)


def _priority(backend: Any) -> float:
    try:
        return float(backend.priority)
    except Exception:  # raised by the property itself where a backend cannot work here
        return 0.0


def choose_key(
    kind: str | None,
    *,
    key_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    ask: Callable[[str], str] | None = None,
    keyring: Callable[[], Any | None] = system_keyring,
) -> Key:
    """The source of the key: for a vault of that `kind`, or for a new one (None).

    What a person has named comes first: a key file, then the passphrase in the environment; then the system's
    keyring, then `ask`, where there is somebody to ask.

    Raises:
        VaultError: there is none, with the ways out.
    """
    if kind is not None and key_file is not None and kind != KeyFile.kind:
        raise VaultError(f"the replay buffer is locked by a {kind}, not by a key file", hint="leave --key-file out")
    if kind in (None, KeyFile.kind) and key_file is not None:
        return KeyFile(key_file)
    passphrase = environment.get(PASSPHRASE, "")
    if kind in (None, PassphraseKey.kind) and passphrase:
        return PassphraseKey(passphrase)
    if kind in (None, KeyringKey.kind):
        found = keyring()
        if found is not None:
            return KeyringKey(found)
    if kind in (None, PassphraseKey.kind) and ask is not None:
        first = ask("passphrase of the replay buffer: ")
        if kind is None and ask("the same again: ") != first:
            raise VaultError("the two passphrases differ")
        return PassphraseKey(first)
    if kind is None:
        raise VaultError("no key for the replay buffer: without one no code is kept", hint=NO_KEY_HINT)
    ways = {
        KeyFile.kind: "name it with --key-file FILE",
        PassphraseKey.kind: f"set {PASSPHRASE}",
        KeyringKey.kind: "pip install keyring, and unlock the keyring that the buffer was made with",
    }
    if kind not in ways:
        raise VaultError(f"the replay buffer is locked by {kind!r}, which this version does not know")
    raise VaultError(f"the replay buffer is locked by a {kind}, and there is none at hand", hint=ways[kind])
