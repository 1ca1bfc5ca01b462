"""A version that was published, what a search is for, and how much a registry takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from neuralforge_common.registry.release import ReleaseFile

Visibility = Literal["public", "team", "private"]
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a registry takes at most: bytes of one file, bytes of all of a team's versions, versions of an adapter."""

    blob_bytes: int = 2**30
    team_bytes: int = 50 * 2**30
    versions: int = 500
    uploads: int = 8
    """Uploads of one team under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version that was published. `published` and `yanked` in seconds since 1970; `size` is of different blobs."""

    team: str
    name: str
    version: str
    visibility: Visibility
    digest: str
    size: int
    signer: str
    publisher: str
    published: float
    description: str = ""
    author: str = ""
    license: str = ""
    base_model: str = ""
    base_fingerprint: str = ""
    allow_worse: bool = False
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    files: tuple[ReleaseFile, ...] = field(default=(), repr=False)
    yanked: float | None = None
    yank_reason: str = ""
    downloads: int = 0

    def __str__(self) -> str:
        return f"{self.team}/{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a search is for; what is empty does not count. `text` is words that must all be found."""

    text: str = ""
    tags: tuple[str, ...] = ()
    language: str = ""
    base_model: str = ""
    team: str = ""
