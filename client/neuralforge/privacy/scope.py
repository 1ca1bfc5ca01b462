"""What is counted together: one lineage of releases, an adapter's or a federation's, and the folder of its ledger."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import PrivacyError
from neuralforge_common.key_files import PRIVATE_FILE

LOCK = "lock"


def privacy_folder(home: Path) -> Path:
    """Where the folders of scopes are."""
    return home / "privacy"


def federation_scope(name: str, endpoint: str) -> str:
    """The scope of all that this machine sends to a federation; `endpoint` is its host:port."""
    return f"federation {name} {endpoint}"


def adapter_scope(path: Path) -> str:
    """The scope of an adapter that is trained on this machine."""
    return f"adapter {path.resolve()}"


def scope_folder(home: Path, scope: str) -> Path:
    """The folder of a scope, whether there is one or not."""
    slug = re.sub("[^A-Za-z0-9._]+", "-", scope).strip("-.")[-60:]
    return privacy_folder(home) / f"{slug}-{hashlib.sha256(scope.encode()).hexdigest()[:12]}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a scope's folder: one run at a time spends its budget.

    Raises:
        PrivacyError: another process has it, which is named, or this file system has no locks.
    """
    path = folder / LOCK
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise PrivacyError(
                    f"{path} cannot be locked: {error.strerror}, and two runs might spend one budget",
                    hint="a NEURALFORGE_HOME on a local disk",
                ) from error
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise PrivacyError(
                f"{folder} is charged by another run just now (process {owner})", hint="wait for it to end"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
