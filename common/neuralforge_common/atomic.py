"""Files and folders that are either the old one or the new one, whole, whenever the power goes.

    write-temp → fsync(files) → rename into place → fsync(parent folder)

A folder that is replaced changes places with the new one in a single system call where the kernel can do that
(`renameat2(RENAME_EXCHANGE)` on Linux, `renamex_np(RENAME_SWAP)` on macOS). Elsewhere it is first moved aside under a
name that says so, and the next call, or `recover_folder`, brings it back if the process died between the two renames.

What a killed process leaves behind is named `.<name>.<token>.new` (unfinished or outdated: removed by the next call) or
`.<name>.<token>.old` (the whole old folder). A living writer holds a lock on its temporary, so that nobody cleans it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from neuralforge_common.errors import StorageError

_HINTS = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another place"),
    errno.EFBIG: ("the file is larger than this place allows", "raise the limit (ulimit -f) or choose another place"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to"),
    errno.EPERM: ("the operation is not permitted here", "choose a folder that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a folder on a disk that can be written"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path or move that file away"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "choose another path or move that file away"),
    errno.EISDIR: ("a folder of this name is in the way", "choose another path or move that folder away"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.ENOENT: ("its folder vanished or takes no files", "choose another folder"),
    errno.EBUSY: ("it is in use or a disk is mounted on it", "choose another path"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, then try again elsewhere"),
}

_NO_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what a disk can refuse (full, read-only, not writable) while writing `path` into a `StorageError`.

    An error that names a file outside `path`'s own parent, such as an input that the body reads, passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _HINTS or not _concerns(error, path):
            raise
        what, hint = _HINTS[error.errno]
        raise StorageError(f"cannot write {path}: {what}", hint=hint) from error


@contextmanager
def open_atomically(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Opens a temporary sibling for writing that becomes `path` when the block ends well, and vanishes otherwise.

    Missing parent folders are made. `mode` is subject to the umask.

    Raises:
        StorageError: the disk is full, read-only or not writable; `path` is then as it was.
    """
    path = _named(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary, descriptor = _create_locked_file(path, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                sync_descriptor(descriptor)
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` so that `path` holds either its old content or all of the new one."""
    with open_atomically(path, mode=mode) as file:
        file.write(data)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields a fresh sibling folder to fill; when the block ends well it takes the place of `path`.

    Every file in it is on the disk before the change, and the change itself after it. An existing folder at `path` is
    removed last. On an exception nothing changes. Missing parent folders are made.

    Raises:
        StorageError: `path` is a file or a link, or the disk is full, read-only or not writable.
    """
    path = _named(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise StorageError(
            f"cannot write {path}: a {'link' if path.is_symlink() else 'file'} of this name is in the way",
            hint="choose another path or move it away",
        )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        _remove_leftovers(path)
        temporary, descriptor = _create_locked_folder(path)
        try:
            try:
                yield temporary
                _sync_tree(temporary)
                outdated = _put_in_place(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(path.parent)
            # The new folder stands; what is left of the old one is rubbish that the next call removes if this cannot.
            shutil.rmtree(outdated, ignore_errors=True)
        finally:
            os.close(descriptor)


def recover_folder(path: Path) -> bool:
    """Brings back the whole old folder of a `replace_folder` that died between its two renames; says if it did."""
    path = Path(path)
    if os.path.lexists(path):
        return False
    for aside in _siblings(path, "old"):
        with _abandoned(_other(aside)) as free:
            if free:
                aside.rename(path)
                sync_folder(path.parent)
                return True
    return False


def _concerns(error: OSError, path: Path) -> bool:
    # Errors of open descriptors (write, fsync) carry no name: they are about the file being written.
    names = [Path(name).absolute() for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    place = path.absolute()
    return not names or any(
        place.is_relative_to(name)
        or any(part.startswith(f".{place.name}.") for part in name.parts[len(place.parts) - 1 : len(place.parts)])
        for name in names
    )


def _named(path: Path) -> Path:
    if Path(path).name in ("", ".."):
        raise StorageError(f"cannot write {path}: it names a place, not a new file or folder", hint="add a name to it")
    return Path(path)


def _new_name(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def _other(aside: Path) -> Path:
    return aside.with_suffix(".new")


def _siblings(path: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.{kind}")
    try:
        with os.scandir(path.parent) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if pattern.fullmatch(entry.name) and not entry.is_symlink()
            ]
    except FileNotFoundError:  # no such parent, or another writer has just cleaned up
        return []
    return [path.with_name(name) for _, name in sorted(found, reverse=True)]


def _create_locked_file(path: Path, mode: int) -> tuple[Path, int]:
    while True:
        temporary = _new_name(path, "new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        if _lock(descriptor, temporary):
            return temporary, descriptor


def _create_locked_folder(path: Path) -> tuple[Path, int]:
    while True:
        temporary = _new_name(path, "new")
        temporary.mkdir()
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # cleaned away: nobody could see yet that it is ours
            continue
        if _lock(descriptor, temporary):
            return temporary, descriptor


def _lock(descriptor: int, temporary: Path) -> bool:
    """Locks a fresh temporary; false where another process cleaned it away before the lock was ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: crashed attempts are then told from living ones by nothing,
        return True  # and `_abandoned` leaves all of them alone
    try:
        if temporary.stat(follow_symlinks=False).st_ino == os.fstat(descriptor).st_ino:
            return True
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return False


@contextmanager
def _abandoned(temporary: Path) -> Iterator[bool]:
    """Whether no living process holds this temporary; true also where it does not exist.

    Until the block ends nobody can take it up: whoever has just made it waits for our lock, and then finds it gone if
    we have cleaned it away.
    """
    try:  # O_NONBLOCK: a planted pipe must not hang us
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    for temporary in _siblings(path, "new"):
        with _abandoned(temporary) as free:
            if free:
                _remove(temporary)
    if os.path.lexists(path):
        for aside in _siblings(path, "old"):
            with _abandoned(_other(aside)) as free:
                if free:
                    _remove_aside(aside)


def _remove_aside(aside: Path) -> None:
    # Only whole folders are ever called .old: rename before removing, or a kill halfway would leave a torn one.
    with contextlib.suppress(OSError):
        rubbish = _other(aside)
        aside.rename(rubbish)
        _remove(rubbish)


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _is_put_where_nothing_is(temporary: Path, path: Path) -> bool:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False  # another process has put its own there since we looked
    return True


def _put_in_place(temporary: Path, path: Path) -> Path:
    """Moves `temporary` to `path`; returns where the outdated folder lies now (a name that may not exist)."""
    if not os.path.lexists(path) and _is_put_where_nothing_is(temporary, path):
        return temporary
    if _exchange(temporary, path):
        return temporary
    aside = temporary.with_suffix(".old")
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    sync_folder(path.parent)
    with contextlib.suppress(OSError):  # the new folder stands; the next call removes the old one
        aside.rename(temporary)
    return temporary


def _exchange(first: Path, second: Path) -> bool:
    """Lets two names change places in one system call; false where this system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = libc.renamex_np(os.fsencode(first), os.fsencode(second), ctypes.c_uint(2))
        else:
            here = ctypes.c_int(-100)  # AT_FDCWD
            failed = libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(2))
    except (AttributeError, OSError):  # a C library without the call
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            file = Path(folder, name)
            if file.is_symlink():
                continue
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync_descriptor(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_descriptor(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Makes what was written to an open file outlast a power cut."""
    if sys.platform == "darwin":
        # On macOS fsync reaches only the drive's cache.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)
