"""A release as a registry describes it: words of strangers, checked before they reach a terminal or a disk.

Nothing here proves anything of the adapter itself; what does is the index, and the signature in the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from neuralforge_common.errors import AdapterError, RegistryError
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.release import (
    RELEASE_FILES,
    ReleaseFile,
    ReleaseName,
    Version,
    check_tags,
    release_digest,
)
from neuralforge_common.strict_json import is_plain_text, shortened

VISIBILITIES = {messages.PUBLIC: "public", messages.TEAM: "team", messages.PRIVATE: "private"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a registry tells of a version; `size` is bytes of its different files."""

    release: ReleaseName
    visibility: str
    tags: tuple[str, ...]
    languages: tuple[str, ...]
    files: tuple[ReleaseFile, ...]
    digest: str
    size: int
    signer: str
    publisher: str
    published: datetime
    yanked: bool
    yank_reason: str
    downloads: int
    description: str
    author: str
    license: str
    base_model: str
    base_fingerprint: str
    allow_worse: bool

    def to_facts(self) -> dict[str, Any]:
        """For a JSON output."""
        return {
            "team": self.release.team,
            "name": self.release.name,
            "version": str(self.release.version),
            "visibility": self.visibility,
            "tags": list(self.tags),
            "languages": list(self.languages),
            "description": self.description,
            "author": self.author,
            "license": self.license,
            "base_model": self.base_model,
            "size": self.size,
            "downloads": self.downloads,
            "published": self.published.isoformat(),
            "publisher": self.publisher,
            "signer": self.signer,
            "digest": self.digest,
            "allow_worse": self.allow_worse,
            "yanked": self.yanked,
        }


def listing(message: Any) -> Listing:
    """Reads a `Release`; raises RegistryError where a field of it cannot be."""
    try:
        texts = {
            field: _line(field, getattr(message, field))
            for field in ("yank_reason", "author", "license", "base_model", "base_fingerprint", "publisher", "signer")
        }
        description = message.description
        if len(description) > 65_536 or not is_plain_text(description, multiline=True):
            raise RegistryError(f"description: got {shortened(description)}")
        if len(message.files) > len(RELEASE_FILES):
            raise RegistryError(f"files: at most {len(RELEASE_FILES)}, got {len(message.files):,}")
        found = Listing(
            release=ReleaseName(team=message.team, name=message.name, version=Version(message.version)),
            visibility=VISIBILITIES.get(message.visibility, "unknown"),
            tags=check_tags(message.tags),
            languages=check_tags(message.languages),
            files=tuple(ReleaseFile(name=each.name, sha256=each.sha256, size=each.size) for each in message.files),
            digest=_line("digest", message.digest),
            size=message.size,
            published=datetime.fromtimestamp(message.published, UTC),
            yanked=message.yanked,
            downloads=message.downloads,
            description=description,
            allow_worse=message.allow_worse,
            **texts,
        )
        if found.files and release_digest(found.files) != found.digest:
            raise RegistryError("its files do not have the digest that it says")
    except (AdapterError, RegistryError, ValueError, OverflowError, OSError) as error:
        reason = getattr(error, "message", str(error))
        raise RegistryError(f"the registry describes an adapter in a way that cannot be: {reason}") from error
    return found


def _line(what: str, text: str) -> str:
    if len(text) > 1024 or not is_plain_text(text):
        raise RegistryError(f"{what}: got {shortened(text)}")
    return text
