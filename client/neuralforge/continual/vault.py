"""Records at rest: encrypted, whole, bounded by whoever writes them, and erased by destroying one key.

    folder/               0700
    ├── key.json          0600: which kind of key locks the vault, and the data key, locked by it (AES-256-GCM)
    ├── lock              held while somebody writes
    └── records.bin       0600: magic │ length │ manifest │ record │ record │ …

Manifest and records are each nonce ‖ AES-256-GCM ciphertext under the data key, their name in the associated data, so
that none can stand in another's place. Where a record stands is in the manifest: a flipped byte is a fault of the one
record that it is in. `records.bin` is replaced whole (see `atomic`): killed at any moment, a writer leaves the old or
the new one. A copy of an older folder put in the place of a newer one is not noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from neuralforge.continual.keys import Key
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import AdapterError, StorageError, VaultError
from neuralforge_common.key_files import check_private, make_private_folder, read_private_file, write_private_file
from neuralforge_common.strict_json import parse_json_object

HEADER, RECORDS, LOCK = "key.json", "records.bin", "lock"
MAX_VAULT_BYTES = 2 * 1024**3
MAX_MANIFEST_BYTES = 64 * 1024**2

_FORMAT = 1
_MAGIC = b"NFVAULT1"
_NONCE_BYTES, _TAG_BYTES = 12, 16
_ID = re.compile("[0-9a-f]{32}")
_DAMAGED = "restore the folder from a copy, or begin anew: neuralforge replay purge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record's line in the manifest: its id, what may be known without opening it, its size on disk."""

    id: str
    facts: Mapping[str, Any]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the vault holds, in order. `generation` counts the writes; `state` is the writer's own."""

    generation: int
    state: Mapping[str, Any]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`key.json`: whose vault it is, which kind of key locks it, and the data key, locked."""

    id: str
    kind: str
    facts: Mapping[str, Any]
    locked: bytes


def is_vault(folder: Path) -> bool:
    """Whether anything of a vault is there, be it damaged or half erased."""
    return any((folder / name).exists() for name in (HEADER, RECORDS)) or any(
        True for name in (HEADER, RECORDS) for _ in folder.glob(f".{name}.*.new")
    )


def read_header(folder: Path) -> Header | None:
    """The vault's header; None where the folder holds no vault.

    Raises:
        VaultError: it is damaged, or gone while records are still there.
        StorageError: others than the owner may use the folder or the file.
    """
    path = folder / HEADER
    if not folder.is_dir():
        return None
    check_private(folder)
    if not path.exists():
        if (folder / RECORDS).exists():
            raise VaultError(f"{path} is gone: its key is destroyed and nothing can read the records", hint=_DAMAGED)
        return None
    what = f"{path} is damaged"
    try:
        values = parse_json_object(read_private_file(path), what=str(path), limit=64 * 1024)
        vault, kind, facts, locked = (values.get(name) for name in ("id", "key", "facts", "locked"))
        if values.get("format") != _FORMAT or not isinstance(vault, str) or not _ID.fullmatch(vault):
            raise VaultError(f"{what}: wanted format {_FORMAT} and an id", hint=_DAMAGED)
        if not (isinstance(kind, str) and isinstance(facts, dict) and isinstance(locked, str)):
            raise VaultError(f"{what}: wanted key, facts and locked", hint=_DAMAGED)
        return Header(id=vault, kind=kind, facts=facts, locked=bytes.fromhex(locked))
    except (AdapterError, ValueError) as error:
        raise VaultError(f"{what}: {getattr(error, 'message', error)}", hint=_DAMAGED) from error


class Vault:
    """An open vault. Records are sealed as they come and written with the next `write`."""

    def __init__(self, folder: Path, header: Header, data_key: bytes, source: str) -> None:
        self.folder = folder
        self.id = header.id
        self.source = source
        self._cipher = AESGCM(data_key)
        self._sealed: dict[str, bytes] = {}
        self._identity: tuple[int, int, int] | None = None

    @classmethod
    def open(cls, folder: Path, key: Key) -> Vault:
        """Unlock the vault of a folder, or make one there.

        Raises:
            VaultError: another key, or a damaged header.
            StorageError: the folder is not private, or the disk refuses.
        """
        make_private_folder(folder)
        with _locked(folder):
            header = read_header(folder)
            if header is None:
                return cls._make(folder, key)
        if header.kind != key.kind:
            raise VaultError(f"the replay buffer in {folder} is locked by a {header.kind}, not by a {key.kind}")
        locking = key.get(header.id, header.facts)
        try:
            data_key = _unsealed(AESGCM(locking), header.locked, _key_name(header.id))
        except InvalidTag as error:
            raise VaultError(
                f"{key.describe()} does not open the replay buffer in {folder}",
                hint="it was made with another one, or its key.json is damaged",
            ) from error
        return cls(folder, header, data_key, key.describe())

    @classmethod
    def _make(cls, folder: Path, key: Key) -> Vault:
        vault = secrets.token_hex(16)
        facts, locking = key.make(vault)
        data_key = secrets.token_bytes(32)
        locked = _sealed(AESGCM(locking), data_key, _key_name(vault))
        text = {"format": _FORMAT, "id": vault, "key": key.kind, "facts": facts, "locked": locked.hex()}
        write_private_file(folder / HEADER, json.dumps(text, indent=2).encode() + b"\n")
        header = Header(id=vault, kind=key.kind, facts=facts, locked=locked)
        return cls(folder, header, data_key, key.describe())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes while this lasts.

        Raises:
            VaultError: the vault was erased since it was opened.
        """
        with _locked(self.folder):
            header = read_header(self.folder)
            if header is None or header.id != self.id:
                raise VaultError(f"the replay buffer in {self.folder} was erased meanwhile", hint="open it anew")
            yield

    def changed(self) -> bool:
        """Whether somebody else has written since this vault last read or wrote."""
        return _identity(self.folder / RECORDS) != self._identity

    def load(self) -> Manifest | None:
        """The manifest as it stands on disk, the records still sealed; None where nothing was written yet.

        Raises:
            VaultError: it is damaged.
        """
        path = self.folder / RECORDS
        # Before it is read: what is replaced in between is read again, and not missed.
        self._identity = _identity(path)
        if self._identity is None:
            self._sealed = {}
            return None
        data = memoryview(read_private_file(path, limit=MAX_VAULT_BYTES))
        begin = len(_MAGIC) + 4
        end = begin + int.from_bytes(data[len(_MAGIC) : begin], "little")
        fault = VaultError(f"the manifest of {path} is damaged", hint=_DAMAGED)
        if bytes(data[: len(_MAGIC)]) != _MAGIC or not begin < end <= min(len(data), begin + MAX_MANIFEST_BYTES):
            raise fault
        try:
            text = _unsealed(self._cipher, bytes(data[begin:end]), self._name("manifest"))
        except InvalidTag as error:
            raise fault from error
        manifest = _parsed(text)
        self._sealed = {}
        for record in manifest.records:
            # What a cut file lacks is found when the record is opened, and named.
            self._sealed[record.id] = bytes(data[end : end + record.size])
            end += record.size
        return manifest

    def open_record(self, record: str) -> bytes:
        """The content of a record.

        Raises:
            VaultError: it is damaged; the message names it.
        """
        try:
            return _unsealed(self._cipher, self._sealed[record], self._name(f"record {record}"))
        except InvalidTag as error:
            raise VaultError(f"record {record} of {self.folder / RECORDS} is damaged", hint=_DAMAGED) from error

    def seal(self, facts: Mapping[str, Any], content: bytes) -> Record:
        """A new record; it is on disk once a manifest with it is written."""
        record = secrets.token_hex(16)
        self._sealed[record] = _sealed(self._cipher, content, self._name(f"record {record}"))
        return Record(id=record, facts=dict(facts), size=len(self._sealed[record]))

    def write(self, state: Mapping[str, Any], records: Sequence[Record], *, generation: int) -> Manifest:
        """Put these records, sealed or loaded earlier, in the place of all that was there.

        Raises:
            StorageError: the disk refuses; what was there still is.
        """
        lines = [{"id": record.id, "facts": record.facts, "size": record.size} for record in records]
        text = json.dumps({"generation": generation, "state": state, "records": lines}).encode()
        manifest = _sealed(self._cipher, text, self._name("manifest"))
        bodies = [self._sealed[record.id] for record in records]
        size = len(_MAGIC) + 4 + len(manifest) + sum(map(len, bodies))
        if len(manifest) > MAX_MANIFEST_BYTES or size > MAX_VAULT_BYTES:
            raise StorageError(f"the replay buffer would take {size:,} bytes, at most {MAX_VAULT_BYTES:,} are allowed")
        data = b"".join([_MAGIC, len(manifest).to_bytes(4, "little"), manifest, *bodies])
        write_private_file(self.folder / RECORDS, data)
        self._identity = _identity(self.folder / RECORDS)
        self._sealed = {record.id: self._sealed[record.id] for record in records}
        return Manifest(generation=generation, state=dict(state), records=tuple(records))

    def _name(self, part: str) -> bytes:
        return f"neuralforge vault {self.id} {part}".encode()


def erase(folder: Path, key: Key | None = None) -> int:
    """Destroy the locked data key, then remove the records; returns how many bytes of records there were.

    No key is needed. `key`, where it is given, forgets what it keeps for this vault alone. Overwriting in place reaches
    the same blocks on most disks and file systems, not on all (copies, snapshots, flash that moves blocks): there the
    locked key is still locked by a passphrase, a key file or a keyring.

    Raises:
        StorageError: the disk refuses.
    """
    if not folder.is_dir():
        return 0
    freed = 0
    vaults = set()
    with storage_errors(folder), _locked(folder):
        # Half-written headers of a killed process hold a locked key as well.
        for path in (folder / HEADER, *folder.glob(f".{HEADER}.*.new")):
            if path.is_file() and not path.is_symlink():
                vaults.add(_id_of(path))
                _overwrite(path)
                path.unlink()
        for path in (folder / RECORDS, *folder.glob(f".{RECORDS}.*.new")):
            if path.exists():
                freed += path.lstat().st_size
                path.unlink()
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's files stay
            folder.rmdir()
    # Last: a keyring that does not answer must not keep the rest from going.
    for vault in vaults:
        if key is not None and vault is not None:
            key.forget(vault)
    return freed


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _id_of(path: Path) -> str | None:
    try:
        found = json.loads(path.read_bytes()).get("id")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def _overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(secrets.token_bytes(path.stat().st_size))
        os.fsync(file.fileno())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    while True:
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: writers are then kept apart by nothing
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # `erase` removes the file: a lock on a file that is no longer there excludes nobody.
            try:
                current = path.stat().st_ino == os.fstat(descriptor).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield
                return
        finally:
            os.close(descriptor)


def _key_name(vault: str) -> bytes:
    return f"neuralforge vault {vault} data key".encode()


def _sealed(cipher: AESGCM, content: bytes, name: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, content, name)


def _unsealed(cipher: AESGCM, sealed: bytes, name: bytes) -> bytes:
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise InvalidTag
    return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name)


def _parsed(text: bytes) -> Manifest:
    # Authenticated: only this program can have written it.
    values = json.loads(text)
    records = tuple(Record(id=line["id"], facts=line["facts"], size=line["size"]) for line in values["records"])
    return Manifest(generation=values["generation"], state=values["state"], records=records)
