"""A file that only grows: JSON lines, each chained to the one before, on the disk before `append` returns.

    {"prev": "<digest of the line before>", …, "digest": "<sha256 of this line up to here>"}

Killed while it writes, a process leaves the file as it was, perhaps with the beginning of a line after it: that line
was never relied upon, as `append` had not returned. A line that was whole and is changed, taken out or put elsewhere
breaks the chain. Lines cut off at the end are not missed, nor is an older copy of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralforge_common.atomic import storage_errors, sync_descriptor, sync_folder
from neuralforge_common.errors import AdapterError, PrivacyError
from neuralforge_common.key_files import PRIVATE_FILE, read_private_file
from neuralforge_common.strict_json import parse_json_object

Entry = Mapping[str, Any]

MAX_JOURNAL_BYTES = 2**30
_START = "0" * 64
_DIGEST = b', "digest": "'

FORGOTTEN = "restore the folder from a copy, or move it away: what it has counted is then forgotten"
"""The way out where a ledger is damaged."""


class Journal:
    """A journal as it was read, ready to be written on by one writer at a time.

    `entries` are those that it held, oldest first; `torn` is how many bytes of an unfinished line stood at its end.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the file at `path`; one that does not exist is empty.

        Raises:
            PrivacyError: a line is damaged or the chain is broken.
            StorageError: the file cannot be read, or others than its owner may.
        """
        self.path = path
        self.entries: list[Entry] = []
        self.torn = 0
        self._last = _START
        self._closed = False
        data = read_private_file(path, limit=MAX_JOURNAL_BYTES) if path.exists() else b""
        self._size = len(data)
        *lines, tail = data.split(b"\n")
        for line in lines:
            self._take(line)
        if tail:
            # Cut exactly before its line feed, a line is complete: it counts, as too much is better than too little.
            try:
                self._take(tail)
            except PrivacyError:
                self.torn = len(tail)
        self._unended = bool(tail) and not self.torn

    def append(self, *entries: Entry) -> None:
        """Put entries on the disk in one write; when this returns, they survive a power cut.

        Raises:
            StorageError: the disk refuses; nothing more can then be appended, as nobody knows what is on it.
            PrivacyError: it is closed, an earlier append failed, or somebody else has written.
        """
        if self._closed:
            raise PrivacyError(f"{self.path}: it is closed, or an earlier write failed: nothing can be added")
        lines, last = [b"\n"] if self._unended else [], self._last
        for entry in entries:
            line, last = _chained(entry, last)
            lines += [line, b"\n"]
        data = b"".join(lines)
        whole = self._size - self.torn
        self._closed = True  # until it is known to have gone well
        with storage_errors(self.path):
            _write(self.path, data, expected=self._size, at=whole)
        self._size, self._last, self.torn, self._unended, self._closed = whole + len(data), last, 0, False, False

    def close(self) -> None:
        """Nothing more can be appended."""
        self._closed = True

    def _take(self, line: bytes) -> None:
        entry, self._last = _checked(line, self._last, f"{self.path}, line {len(self.entries) + 1}")
        self.entries.append(entry)


def _chained(entry: Entry, last: str) -> tuple[bytes, str]:
    body = json.dumps({"prev": last, **entry}, ensure_ascii=False, allow_nan=False).encode()[:-1]
    digest = hashlib.sha256(body).hexdigest()
    return body + _DIGEST + digest.encode() + b'"}', digest


def _checked(line: bytes, last: str, what: str) -> tuple[Entry, str]:
    body, mark, end = line.rpartition(_DIGEST)
    digest = hashlib.sha256(body).hexdigest()
    if not mark or end != digest.encode() + b'"}':
        raise PrivacyError(f"{what}: it was changed or damaged: it does not match its digest", hint=FORGOTTEN)
    try:
        entry = parse_json_object(line, what=what, limit=MAX_JOURNAL_BYTES)
    except AdapterError as error:
        raise PrivacyError(error.message, hint=FORGOTTEN) from error
    if entry.pop("prev", None) != last:
        raise PrivacyError(f"{what}: a line before it was taken out or put in", hint=FORGOTTEN)
    del entry["digest"]
    return entry, digest


def _write(path: Path, data: bytes, *, expected: int, at: int) -> None:
    """Write from `at` on, over what is left of a write that was cut off; the file must have the `expected` size."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        size = os.fstat(descriptor).st_size
        if size != expected:
            raise PrivacyError(f"{path}: somebody else has changed it: wanted {expected:,} bytes, got {size:,}")
        if size > at:
            os.ftruncate(descriptor, at)
        while data:
            written = os.pwrite(descriptor, data, at)
            data, at = data[written:], at + written
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)
