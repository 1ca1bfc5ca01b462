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


def locate(name_or_path: str | Path, *, revision: str | None) -> Origin:
    """Find a base without loading it; GGUF files, the embedded one too, are converted here, once.

    A friendly name wins over a folder of the same name, so that a repository that one trains in cannot plant a base.

    Raises:
        ModelError: nothing of this name, or a revision of something that has none.
    """
    name = str(name_or_path).strip()
    entry = catalog.find(name) if isinstance(name_or_path, str) else None
    if entry is not None and not entry.embedded:
        return _on_the_hub(entry.hub_id, entry.name, revision or entry.revision, entry.license)
    path = Path(name).expanduser()
    if entry is None and not (name and path.exists()):
        if isinstance(name_or_path, str) and _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
            return _on_the_hub(name, name, revision, catalog.license_of(name))
        if isinstance(name_or_path, Path) or _PATH.fullmatch(name):
            raise ModelError(f"{name}: no such folder or file", hint="a base model is a folder or a .gguf file")
        entry = catalog.resolve(name)  # raises: neither a name nor a place
    if entry is not None:
        base = embedded.locate(entry.name)
        origin = _converted(base, entry.name, entry.license)
    elif path.is_dir():
        place = str(path)
        origin = Origin(place=place, is_local=True, name=path.resolve().name, source=place, revision=None, license="")
    else:
        base = embedded.convert_file(path)
        origin = _converted(base, path.stem, base.license)
    # An adapter remembers the digest of the file that its base was made from, and asks for it again.
    if revision not in (None, origin.revision):
        kind = "is part of this installation" if entry else "is on this machine"
        raise ModelError(f"{name} {kind}: it has no revision {revision!r}", hint="leave the revision out")
    return origin


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
