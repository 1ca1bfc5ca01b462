"""Private files: written whole with mode 0600 into folders with 0700, and not read when they are looser than that."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from neuralforge_common.atomic import storage_errors, write_bytes_atomically
from neuralforge_common.errors import StorageError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def make_private_folder(path: Path) -> None:
    """Makes a folder, and those above it that are missing, for its owner alone; an existing one must be private.

    Raises:
        StorageError: it cannot be made, or others may look into it.
    """
    with storage_errors(path):
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    check_private(path)


def write_private_file(path: Path, data: bytes) -> None:
    """Writes a file whole that only its owner can read.

    Raises:
        StorageError: the disk is full, read-only or not writable; `path` is then as it was.
    """
    write_bytes_atomically(path, data, mode=PRIVATE_FILE)


def read_private_file(path: Path, *, limit: int = 64 * 1024) -> bytes:
    """Reads a file that only its owner can read.

    Raises:
        StorageError: it is missing, not a plain file, too large, or others may read it.
    """
    try:
        # O_NOFOLLOW and O_NONBLOCK: a link or a pipe in its place is refused and not followed or waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"cannot read {path}: it is not a plain file")
        _check_mode(path, status)
        if status.st_size > limit:
            raise StorageError(f"cannot read {path}: it is larger than {limit:,} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def check_private(path: Path) -> None:
    """Checks that nobody but its owner can use a file or look into a folder.

    Raises:
        StorageError: it is missing or a link, or its mode is looser than 0600 or 0700.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise StorageError(f"cannot use {path}: {error.strerror or error}") from error
    if stat.S_ISLNK(status.st_mode):
        raise StorageError(f"cannot use {path}: it is a link", hint="put the real file or folder there")
    _check_mode(path, status)


def _check_mode(path: Path, status: os.stat_result) -> None:
    wanted = PRIVATE_FOLDER if stat.S_ISDIR(status.st_mode) else PRIVATE_FILE
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise StorageError(
            f"{path}: others than its owner may use it: its mode is {mode:04o}, wanted {wanted:04o}",
            hint=f"chmod {wanted:o} {shlex.quote(str(path))}",
        )
