"""What a person's word for a base model means: a friendly name, a hub id, a folder, a GGUF file."""

import re
from dataclasses import dataclass
from pathlib import Path

from neuralforge.models import catalog, embedded
from neuralforge_common.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH = re.compile(r"[./~\\].*|.*/.*|.*\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a base is read from: `place` is a folder or a hub id; the rest is what `BaseModel` will say of it."""

    place: str
    is_local: bool
    name: str
    source: str
    revision: str | None
    license: str
    notices: tuple[str, ...] = ()


def find(name_or_path: str | Path) -> catalog.CatalogEntry | str | Path:
    """What a word means, nothing read or converted: an entry of the catalogue, a hub id, or a folder or file.

    A friendly name wins over a folder of the same name, so that a repository that one trains in cannot plant a base.

    Raises:
        ModelError: nothing of this name.
    """
    name = str(name_or_path).strip()
    if isinstance(name_or_path, str) and (entry := catalog.find(name)) is not None:
        return entry
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return name
    if isinstance(name_or_path, Path) or _PATH.fullmatch(name):
        raise ModelError(f"{name}: no such folder or file", hint="a base model is a folder or a .gguf file")
    return catalog.resolve(name)  # raises: neither a name nor a place


def locate(name_or_path: str | Path, *, revision: str | None) -> Origin:
    """Find a base without loading it; GGUF files, the embedded one too, are converted here, once.

    Raises:
        ModelError: nothing of this name, or a revision of something that has none.
    """
    name = str(name_or_path).strip()
    match find(name_or_path):
        case str(hub_id):
            return _on_the_hub(hub_id, hub_id, revision, catalog.license_of(hub_id))
        case catalog.CatalogEntry(embedded=False) as entry:
            return _on_the_hub(entry.hub_id, entry.name, revision or entry.revision, entry.license)
        case catalog.CatalogEntry() as entry:
            kind = "is part of this installation"
            origin = _converted(embedded.locate(entry.name), entry.name, entry.license)
        case path:
            kind = "is on this machine"
            origin = _on_this_machine(path)
    # An adapter remembers the digest of the file that its base was made from, and asks for it again.
    if revision not in (None, origin.revision):
        raise ModelError(f"{name} {kind}: it has no revision {revision!r}", hint="leave the revision out")
    return origin


def _on_this_machine(path: Path) -> Origin:
    if not path.is_dir():
        base = embedded.convert_file(path)
        return _converted(base, path.stem, base.license)
    place = str(path)
    return Origin(place=place, is_local=True, name=path.resolve().name, source=place, revision=None, license="")


def _on_the_hub(hub_id: str, name: str, revision: str | None, license: str) -> Origin:
    return Origin(place=hub_id, is_local=False, name=name, source=hub_id, revision=revision, license=license)


def _converted(base: embedded.LocalBase, name: str, license: str) -> Origin:
    return Origin(
        place=str(base.folder),
        is_local=True,
        name=name,
        source=base.source,
        revision=base.revision,
        license=license,
        notices=base.notices,
    )
