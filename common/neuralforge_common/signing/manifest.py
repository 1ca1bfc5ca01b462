"""Every file of an adapter folder and its SHA-256; what a signature covers.

An adapter is one folder of plain files. A folder inside it, a link, a pipe and a hidden file are refused, when signing
and when verifying: OMS cannot express an empty folder, and its own tool passes over `.git`. So there is nothing in a
folder that verifies which the signature does not cover, but the signature.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import (
    MAX_TOKENIZER_BYTES,
    MAX_WEIGHTS_BYTES,
    PEFT_WEIGHTS,
    SIGNATURE,
    WEIGHTS,
    open_member,
)
from neuralforge_common.strict_json import is_plain_text, shortened

MAX_FILES = 256

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What a signature that was being written leaves behind when the power goes; the next one removes it.
_UNFINISHED = re.compile(rf"\.{re.escape(SIGNATURE)}\.[0-9a-f]{{16}}\.new")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """File names → SHA-256 as 64 hex digits, in the order of the names.

    Raises:
        AdapterError: no files or too many; a name that is none, or that some disk takes for another's; no digest.
    """

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if not 1 <= len(self.files) <= MAX_FILES:
            raise AdapterError(f"wanted 1 to {MAX_FILES} files, got {len(self.files):,}")
        folded: dict[str, str] = {}
        for name, digest in self.files.items():
            check_name(name)
            if not _SHA256.fullmatch(digest):
                raise AdapterError(f"{shortened(name)}: wanted a SHA-256 of 64 hex digits, got {shortened(digest)}")
            twin = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if twin != name:
                raise AdapterError(f"{shortened(twin)} and {shortened(name)} are one name on some disks")
        object.__setattr__(self, "files", dict(sorted(self.files.items())))

    @property
    def digest(self) -> str:
        """One digest of all: SHA-256 over the files' digests in the order of their names (OMS, `subject`)."""
        return hashlib.sha256(bytes.fromhex("".join(self.files.values()))).hexdigest()


def check_name(name: str) -> None:
    """Checks that a name can be a covered file's: one part of a path, not hidden, nothing that drives a terminal.

    Raises:
        AdapterError: it cannot.
    """
    if not name or name.startswith(".") or re.search(r"[/\\:]", name) or not is_plain_text(name):
        kind = "a hidden file" if re.fullmatch(r"\.\w[^/\\]*", name) else "no plain file name"
        raise AdapterError(f"{shortened(name)} is {kind}", hint="an adapter is one folder of plain, visible files")
    if name == SIGNATURE:
        raise AdapterError(f"{SIGNATURE} cannot cover itself")
    if len(name.encode()) > 255:
        raise AdapterError(f"{shortened(name)}: a file name has at most 255 bytes")


def list_files(folder: int, *, unfinished: bool = False) -> tuple[str, ...]:
    """The files in the folder of a descriptor, sorted, without the signature; with `unfinished`, none of its drafts.

    Raises:
        AdapterError: there is anything else in it, or too much.
    """
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == SIGNATURE or (unfinished and _UNFINISHED.fullmatch(entry.name)):
                continue
            if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
                kind = "a link" if entry.is_symlink() else "a folder" if entry.is_dir() else "no file"
                raise AdapterError(
                    f"{shortened(entry.name)} is {kind}", hint="an adapter is one folder of plain, visible files"
                )
            check_name(entry.name)
            names.append(entry.name)
            if len(names) > MAX_FILES:
                raise AdapterError(f"more than {MAX_FILES} files")
    return tuple(sorted(names))


def hash_files(folder: int, names: Iterable[str]) -> Manifest:
    """The manifest of some files in the folder of a descriptor; two names of one file are read once.

    Raises:
        AdapterError: one is missing, no plain file, too large, or was written to meanwhile.
    """
    digests: dict[str, str] = {}
    known: dict[tuple[int, int], str] = {}
    for name in names:
        limit = MAX_WEIGHTS_BYTES if name in (WEIGHTS, PEFT_WEIGHTS) else MAX_TOKENIZER_BYTES
        with open_member(folder, name, limit) as (file, status):
            place = (status.st_dev, status.st_ino)
            if place not in known:
                digest, left = hashlib.sha256(), status.st_size
                while left and (chunk := file.read(min(left, _CHUNK))):
                    digest.update(chunk)
                    left -= len(chunk)
                if left or file.read(1):
                    raise AdapterError(f"{shortened(name)} was written to while it was read")
                known[place] = digest.hexdigest()
            digests[name] = known[place]
    return Manifest(digests)


def open_folder(path: Path) -> int:
    """A descriptor of the folder, so that everything that is looked at is in the same one; the caller closes it.

    Raises:
        AdapterError: there is no such folder.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        hint = "an adapter is a folder, such as my-adapter.lora"
        raise AdapterError(f"cannot open the adapter: {reason}", hint=hint) from error
