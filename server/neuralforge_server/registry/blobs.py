"""Files by their SHA-256, through fsspec: a folder by default, an object store by URL.

A blob appears whole or not at all (a folder: temporary, fsync, rename; an object store puts in one piece), and is
believed again at each read only after all of it was hashed.
"""

from __future__ import annotations

import hashlib
import posixpath
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from neuralforge_common.atomic import open_atomically
from neuralforge_common.errors import RegistryError, StorageError, UsageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder
from neuralforge_common.strict_json import shortened

CHUNK = 256 * 1024


class BlobStore:
    """The blobs under a URL. Threads may share it.

    Raises:
        UsageError: a URL that fsspec does not know, or whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--blobs: {shortened(url)}: {error}") from error
        self._folder = Path(self._root) if isinstance(self._files, LocalFileSystem) else None
        if self._folder is not None and not self._folder.exists():
            make_private_folder(self._folder)

    def put(self, digest: str, source: Path) -> None:
        """Stores a file whose SHA-256 was found to be `digest`; a damaged blob of that name is replaced.

        Raises:
            StorageError: the store refuses.
        """
        if self._is_sound(digest, source.stat().st_size):
            return
        with self._errors():
            if self._folder is not None:
                place = Path(self._path(digest))
                if not place.parent.exists():
                    place.parent.mkdir(mode=0o700, exist_ok=True)
                with source.open("rb") as file, open_atomically(place, mode=PRIVATE_FILE) as target:
                    _copy(file, target)
                return
            self._files.makedirs(posixpath.dirname(self._path(digest)), exist_ok=True)
            draft = f"{self._path(digest)}.{secrets.token_hex(8)}.new"
            self._files.put_file(str(source), draft)
            self._files.mv(draft, self._path(digest))

    def read(self, digest: str, size: int, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on; its end is given only if the whole of it has its digest.

        Raises:
            RegistryError: it is not what was stored (DATA_LOSS).
        """
        found, done, held = hashlib.sha256(), 0, b""
        try:
            with self._errors(), self._files.open(self._path(digest), "rb") as file:
                while chunk := file.read(CHUNK):
                    found.update(chunk)
                    wanted = chunk[max(0, offset - done) :]
                    done += len(chunk)
                    if done > size:
                        break
                    # One chunk behind: who stops here has nothing that looks whole.
                    if held:
                        yield held
                    held = wanted
        except FileNotFoundError as error:
            raise _damaged(digest, "it is gone") from error
        if done != size or found.hexdigest() != digest:
            raise _damaged(digest, "its bytes have changed")
        if held:
            yield held

    def check(self, digest: str, size: int) -> None:
        """Reads a blob whole; raises RegistryError where it is damaged."""
        for _ in self.read(digest, size):
            pass

    def sweep(self, keep: Iterable[str], *, older: float, now: float | None = None) -> int:
        """Removes blobs and drafts that nobody names, if they are `older` seconds old; returns how many.

        Raises:
            StorageError: the store refuses.
        """
        kept, removed, before = set(keep), 0, (time.time() if now is None else now) - older
        with self._errors():
            for path, entry in self._files.find(self._root, detail=True).items():
                changed = _modified(self._files, path, entry)
                if posixpath.basename(path) not in kept and changed is not None and changed < before:
                    self._files.rm_file(path)
                    removed += 1
        return removed

    def _is_sound(self, digest: str, size: int) -> bool:
        try:
            self.check(digest, size)
        except RegistryError:
            return False
        return True

    def _path(self, digest: str) -> str:
        return posixpath.join(self._root, digest[:2], digest)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot use the blobs: {error.strerror or error}") from error


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)


def _modified(files: Any, path: str, entry: dict[str, Any]) -> float | None:
    if isinstance(entry.get("mtime"), int | float):
        return float(entry["mtime"])
    try:
        return float(files.modified(path).timestamp())
    except (NotImplementedError, AttributeError):  # a store that does not say: nothing is removed there
        return None


def _damaged(digest: str, why: str) -> RegistryError:
    return RegistryError(
        f"the blob sha256:{digest} is not what was published: {why}",
        hint="whoever runs the registry restores it, or the same adapter is published again as another version",
        status="DATA_LOSS",
    )
