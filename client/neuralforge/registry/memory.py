"""The indexes that were seen of a registry, so that an older or another state of it is noticed.

    registries/<host>_<port>/indexes/<view>.json    the last index of each view, as the registry signed it
                                     lock           held from reading them to writing the new one

What is kept is verified again when it is read: a file that was changed here is no memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from datetime import datetime
from pathlib import Path

from neuralforge.registry.home import INDEXES, KnownRegistry
from neuralforge_common.atomic import storage_errors
from neuralforge_common.errors import SignatureError, StorageError
from neuralforge_common.key_files import PRIVATE_FILE, make_private_folder, write_private_file
from neuralforge_common.registry.index import MAX_INDEX_BYTES, Index, check_current, read_index

MOST_VIEWS = 16


def believe_index(data: bytes, known: KnownRegistry, *, now: datetime) -> Index:
    """Verifies an index against the pinned key and everything that was seen of the registry, and remembers it.

    Raises:
        SignatureError: a step failed (`step`); nothing was remembered.
        StorageError: the memory is damaged or cannot be written.
    """
    folder = known.folder / INDEXES
    index = read_index(data, known.index_key)
    if not folder.exists():
        make_private_folder(folder)
    with storage_errors(folder / "lock"):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        # Two pulls at a time: the later index must be compared with the earlier, and never be replaced by it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        seen = _read_seen(folder, known)
        check_current(index, seen.values(), now=now)
        place = folder / f"{hashlib.sha256(index.view.encode()).hexdigest()}.json"
        write_private_file(place, data)
        others = sorted((path for path in seen if path != place), key=lambda path: seen[path].version)
        for path in others[: max(0, len(others) + 1 - MOST_VIEWS)]:
            path.unlink()
    finally:
        os.close(lock)
    return index


def _read_seen(folder: Path, known: KnownRegistry) -> dict[Path, Index]:
    seen = {}
    for path in sorted(folder.glob("*.json")):
        try:
            with path.open("rb") as file:
                seen[path] = read_index(file.read(MAX_INDEX_BYTES + 1), known.index_key)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        except SignatureError as error:
            raise StorageError(
                f"{path} is damaged: {error.message}",
                hint="without it an older index cannot be told from the newest; if you have no copy: "
                "neuralforge adapters login ADDRESS --anew",
            ) from error
    return seen
