"""The keyring as a file: one JSON object, written whole, changed by one process at a time.

trusted-signers.json    {"format": 1, "signers": [{"name", "teams", "key", "added", "expires", "revoked", "reason"}]}
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from neuralforge_common.errors import AdapterError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder, write_private_file
from neuralforge_common.signing.keys import decode_public_key
from neuralforge_common.signing.trust import Keyring, Signer
from neuralforge_common.strict_json import parse_json_object, shortened

KEYRING = "trusted-signers.json"

_FORMAT = 1
_MAX_BYTES = 2**20
_FIELDS = {"name", "teams", "key", "added", "expires", "revoked", "reason"}


def read_keyring(path: Path) -> Keyring:
    """Reads a keyring; an empty one where there is no file.

    Raises:
        StorageError: it is damaged, or others than its owner may change it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Keyring()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"cannot read {path}: it is not a plain file")
        # Others may read it, it holds no secret; whoever may write it says whom we believe.
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StorageError(
                f"{path}: others than its owner may change it", hint=f"chmod go-w {shlex.quote(str(path))}"
            )
        data = file.read(_MAX_BYTES + 1)
    try:
        return _decode(data, str(path))
    except (AdapterError, StorageError, ValueError) as error:
        message = getattr(error, "message", str(error))
        raise StorageError(
            f"{path} is damaged: {message.removeprefix(f'{path}: ')}", hint="restore it, or remove it and trust anew"
        ) from error


def change_keyring(path: Path, change: Callable[[Keyring], Keyring]) -> Keyring:
    """Reads a keyring, changes it, writes it whole; two changes at a time wait for each other.

    Raises:
        StorageError: it is damaged, cannot be written, or others may change it.
    """
    if not path.parent.exists():
        make_private_folder(path.parent)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keyring = change(read_keyring(path))
        write_private_file(path, _encode(keyring))
    finally:
        os.close(lock)
    return keyring


def _encode(keyring: Keyring) -> bytes:
    signers = [
        {
            "name": signer.name,
            "teams": list(signer.teams),
            "key": signer.key.pem.decode("ascii"),
            "added": _to_text(signer.added),
            "expires": signer.expires and _to_text(signer.expires),
            "revoked": signer.revoked and _to_text(signer.revoked),
            "reason": signer.reason,
        }
        for signer in keyring.signers
    ]
    return json.dumps({"format": _FORMAT, "signers": signers}, indent=2, ensure_ascii=False).encode() + b"\n"


def _decode(data: bytes, what: str) -> Keyring:
    document = parse_json_object(data, what=what, limit=_MAX_BYTES)
    entries = document.get("signers")
    if document.keys() != {"format", "signers"} or document["format"] != _FORMAT or not isinstance(entries, list):
        raise StorageError(f"{what}: wanted format {_FORMAT} with a list of signers")
    signers = tuple(_signer(entry, f"signer {number}") for number, entry in enumerate(entries, 1))
    prints = [signer.key.fingerprint for signer in signers]
    if len(set(prints)) != len(prints):
        raise StorageError(f"{what}: a key stands there twice")
    return Keyring(signers)


def _signer(entry: object, what: str) -> Signer:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise StorageError(f"{what}: wanted {', '.join(sorted(_FIELDS))}")
    teams = entry["teams"]
    texts = [entry["name"], entry["key"], entry["reason"], *(teams if isinstance(teams, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise StorageError(f"{what}: name, key, reason and each of teams are texts")
    added = _from_text(entry["added"], what)
    if added is None:
        raise StorageError(f"{what}: added: wanted a time, got null")
    return Signer(
        name=entry["name"],
        key=decode_public_key(entry["key"].encode(), what),
        added=added,
        teams=tuple(teams),
        expires=_from_text(entry["expires"], what),
        revoked=_from_text(entry["revoked"], what),
        reason=entry["reason"],
    )


def _to_text(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _from_text(text: object, what: str) -> datetime | None:
    if text is None:
        return None
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text):
        raise StorageError(f"{what}: wanted a time like 2026-01-31T09:30:00Z, got {shortened(text)}")
    return datetime.fromisoformat(text)
