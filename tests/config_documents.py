"""What is wrong with a text as a configuration of some kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralforge_common.config.document import Document
from neuralforge_common.config.resolve import resolve
from neuralforge_common.errors import ConfigError


def faults_of(
    document: Document[Any],
    folder: Path,
    content: str,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Load a text as `c.yaml` and return the faults, line by line, without the folder's name."""
    file = folder / "c.yaml"
    file.write_text(content)
    try:
        resolve(document, file, overrides or {}, environ or {})
    except ConfigError as error:
        return tuple(fault.removeprefix(f"{folder}/") for fault in error.faults)
    return ()
