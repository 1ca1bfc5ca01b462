"""The adapters below folders, each as far as it can be known without opening its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterClaims, is_adapter_folder, read_adapter_claims

_PASSED_OVER = frozenset({"node_modules", "__pycache__", "site-packages"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An adapter folder: what it says of itself, or what is wrong with it."""

    path: Path
    claims: AdapterClaims | None
    fault: str = ""


def find_adapters(roots: Sequence[Path]) -> Iterator[Found]:
    """Every adapter folder at or below the roots, in the order of paths, each once.

    Links are not followed; hidden folders and those of packages are passed over, unless they are a root.

    Raises:
        AdapterError: a root is no folder.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise AdapterError(f"{root}: no such folder", hint="name a folder with adapters in it, or one itself")
        for path in _folders(root):
            if (whole := path.resolve()) not in seen:
                seen.add(whole)
                yield _looked_at(path)


def _folders(root: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(root):
        path = Path(place)
        if is_adapter_folder(path):
            folders.clear()  # what lies in an adapter is no adapter of its own
            yield path
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _PASSED_OVER)


def _looked_at(path: Path) -> Found:
    try:
        return Found(path=path, claims=read_adapter_claims(path))
    except AdapterError as error:
        return Found(path=path, claims=None, fault=error.message.removeprefix(f"{path}: "))
