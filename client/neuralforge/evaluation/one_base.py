"""Whether two adapters can be compared at all, told before torch is imported and a base loaded."""

from __future__ import annotations

from pathlib import Path

from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterFolder, read_adapter_folder


def read_pair(a: Path, b: Path) -> tuple[AdapterFolder, AdapterFolder]:
    """Validate both folders; no base is opened.

    Raises AdapterError: a damaged folder, or adapters of two bases, of which no figure a token could be compared.
    """
    first, second = read_adapter_folder(a), read_adapter_folder(b)
    prints = first.spec.base_fingerprint, second.spec.base_fingerprint
    apart = prints[0] != prints[1] if all(prints) else first.spec.base != second.spec.base
    if apart:
        raise AdapterError(
            f"the adapters were made for two bases: {a} for {first.spec.base}, {b} for {second.spec.base}",
            hint="compare each with its own base: neuralforge benchmark --adapter …",
        )
    return first, second
