"""Where an export may be written: nothing of anybody's is replaced."""

from __future__ import annotations

from pathlib import Path

from neuralforge_common.errors import StorageError


def check_free(path: Path) -> None:
    """Checks that nothing is at `path` but, perhaps, an empty folder; raises StorageError."""
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise StorageError(f"{path}: something is there already", hint="name another place, or move it away")
