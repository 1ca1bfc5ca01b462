"""The registry's folder, inside the federation's state folder, and everything in it, opened.

    registry/registry.db            teams, tokens, releases, the audit log (or a PostgreSQL, by URL)
             blobs/                 the files of releases (or an object store, by URL)
             uploads/               what is on its way in
             trusted-signers.json   whose signatures count for which team
             index.key              what the index is signed with: who loses it loses what clients have pinned
             lock                   held by the one process that serves

Commands such as `nf-server registry team` work on the database and the keyring while it serves.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import RegistryError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder
from neuralforge_common.signing.keyring_file import KEYRING
from neuralforge_server.registry.access import Access
from neuralforge_server.registry.blobs import BlobStore
from neuralforge_server.registry.index import IndexSigner, open_index_key
from neuralforge_server.registry.published import Quota
from neuralforge_server.registry.releases import Releases
from neuralforge_server.registry.schema import Database
from neuralforge_server.registry.uploads import Uploads

FOLDER = "registry"
DATABASE = "registry.db"

_CHECKS_AT_A_TIME = 2
_CHECK_PATIENCE = 60.0
_ORPHANED_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """An opened registry; `keyring` is the path of whose signatures count."""

    name: str
    quota: Quota
    database: Database
    access: Access
    releases: Releases
    uploads: Uploads
    blobs: BlobStore
    index: IndexSigner
    keyring: Path
    _checks: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_CHECKS_AT_A_TIME))

    @contextmanager
    def checking(self) -> Iterator[None]:
        """One of a few at a time: whoever checks an adapter holds its weights in memory."""
        if not self._checks.acquire(timeout=_CHECK_PATIENCE):
            raise RegistryError("many adapters are being checked: try again", status="RESOURCE_EXHAUSTED")
        try:
            yield
        finally:
            self._checks.release()


def open_database(directory: Path, url: str | None) -> Database:
    """The registry's database: at a URL, or in the folder beside the federation's state.

    Raises:
        UsageError: a URL that is no database's.
        StorageError: it cannot be used, or others may look into it.
    """
    folder = directory / FOLDER
    make_private_folder(folder)
    return Database(url if url is not None else f"sqlite:///{(folder / DATABASE).absolute()}")


@contextmanager
def open_registry(
    directory: Path,
    *,
    name: str,
    database: str | None = None,
    blobs: str | None = None,
    quota: Quota | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Registry]:
    """Everything of a registry, for the one process that serves it; what a crash has left behind is swept.

    Raises:
        UsageError: a URL that is none.
        StorageError: another process serves it; something cannot be used.
    """
    quota = quota if quota is not None else Quota()
    folder = directory / FOLDER
    opened = open_database(directory, database)
    try:
        with _alone(folder / "lock"):
            releases = Releases(opened, quota=quota, clock=clock)
            registry = Registry(
                name=name,
                quota=quota,
                database=opened,
                access=Access(opened, clock=clock),
                releases=releases,
                uploads=Uploads(folder / "uploads", clock=clock),
                blobs=BlobStore(blobs if blobs is not None else f"file://{(folder / 'blobs').absolute()}"),
                index=IndexSigner(opened, releases, name=name, key=open_index_key(folder / "index.key"), clock=clock),
                keyring=folder / KEYRING,
            )
            registry.uploads.sweep()
            # Only now, when nobody publishes: a blob that waits for its version would look forgotten.
            registry.blobs.sweep(releases.blobs(), older=_ORPHANED_AFTER, now=clock())
            yield registry
    finally:
        opened.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another registry serves {path.parent}", hint="stop it, or name another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
