"""What both sides of a registry mean by a name, a version and a release: `team/name@1.2.0`, one digest of its files.

Versions are semantic ones (https://semver.org/spec/v2.0.0.html) and compared as §11 says; what stands behind a `+`
counts for nothing in that order, so two versions that differ in it alone cannot both be published.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import CARD, METADATA, PEFT_CONFIG, PEFT_WEIGHTS, SIGNATURE, TOKENIZER, WEIGHTS
from neuralforge_common.strict_json import shortened

RELEASE_FILES = frozenset({METADATA, WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG, CARD, TOKENIZER, SIGNATURE})
"""What a release may hold; the format's names and nothing else."""

NEEDED_FILES = frozenset({METADATA, PEFT_WEIGHTS, PEFT_CONFIG, SIGNATURE})
"""What it must hold."""

_TEAM = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
_TAG = re.compile(r"[a-z0-9](?:[a-z0-9._+#-]{0,38}[a-z0-9+#])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version; equal where nothing but the build (`+…`) differs."""

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > 64 or not _VERSION.fullmatch(self.text):
            raise AdapterError(
                f"version: wanted a semantic version such as 1.2.0 or 2.0.0-rc.1, got {shortened(self.text)}"
            )

    @property
    def core(self) -> str:
        """The version without its build."""
        return self.text.partition("+")[0]

    @property
    def is_prerelease(self) -> bool:
        """Whether it comes before the version that its numbers name."""
        return "-" in self.core

    def _key(self) -> tuple[object, ...]:
        found = _VERSION.fullmatch(self.text)
        assert found is not None  # noqa: S101 - checked when it was made
        numbers = tuple(int(number) for number in found.group(1, 2, 3))
        # Numbers before words, fewer identifiers before more, and every pre-release before the release.
        parts = tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in (found[4] or "").split(".") if p)
        return (*numbers, not parts, parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseName:
    """`team/name@1.2.0`; without a version, the latest is meant.

    Raises:
        AdapterError: a part that cannot be.
    """

    team: str
    name: str
    version: Version | None = None

    def __post_init__(self) -> None:
        check_team(self.team)
        check_adapter_name(self.name)

    @classmethod
    def parse(cls, text: str) -> ReleaseName:
        """Reads `team/name` or `team/name@1.2.0`; raises AdapterError."""
        path, at, version = text.partition("@")
        team, slash, name = path.partition("/")
        if not slash or (at and not version):
            raise AdapterError(f"wanted team/name or team/name@1.2.0, got {shortened(text)}")
        return cls(team=team, name=name, version=Version(version) if at else None)

    def __str__(self) -> str:
        return f"{self.team}/{self.name}" + (f"@{self.version}" if self.version else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """One file of a release.

    Raises:
        AdapterError: a name that the format does not have, a digest that is none, a size below 0.
    """

    name: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if self.name not in RELEASE_FILES:
            raise AdapterError(
                f"{shortened(self.name)} is no file of an adapter",
                hint=f"an adapter holds {', '.join(sorted(RELEASE_FILES))} and nothing else",
            )
        if not _SHA256.fullmatch(self.sha256):
            raise AdapterError(f"{self.name}: wanted a SHA-256 of 64 hex digits, got {shortened(self.sha256)}")
        if self.size < 0:
            raise AdapterError(f"{self.name}: wanted a size from 0 on, got {self.size}")


def release_digest(files: Iterable[ReleaseFile]) -> str:
    """One digest of a release's files, the signature among them, 64 hex digits.

    SHA-256 of one line `<sha256> <size> <name>` and a line feed for each file, in the order of their names.

    Raises:
        AdapterError: a name stands there twice, or a file that every adapter has is missing.
    """
    ordered = sorted(files, key=lambda file: file.name)
    names = [file.name for file in ordered]
    if len(set(names)) != len(names):
        raise AdapterError("a release names a file twice")
    if missing := sorted(NEEDED_FILES - set(names)):
        raise AdapterError(f"{missing[0]} is missing")
    lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in ordered)
    return hashlib.sha256(lines.encode()).hexdigest()


def check_team(text: str) -> str:
    """The name of a team: 1 to 63 of a-z, 0-9 and inner dashes; raises AdapterError for anything else."""
    if not _TEAM.fullmatch(text):
        raise AdapterError(f"team: wanted 1 to 63 lower-case letters, digits and dashes, got {shortened(text)}")
    return text


def check_adapter_name(text: str) -> str:
    """The name of an adapter in a registry; raises AdapterError where it cannot be one."""
    if not _NAME.fullmatch(text):
        raise AdapterError(
            f"name: wanted 1 to 100 lower-case letters, digits and . _ - inside, got {shortened(text)}",
            hint="an adapter is published under the name in its metadata.json; name it so and sign it again",
        )
    return text


def check_tags(tags: Iterable[str], *, most: int = 20) -> tuple[str, ...]:
    """Tags or languages, sorted, each once; raises AdapterError where one cannot be a tag, or there are too many."""
    found = sorted(set(tags))
    if len(found) > most:
        raise AdapterError(f"tags: at most {most} are allowed, got {len(found)}")
    for tag in found:
        if not _TAG.fullmatch(tag):
            raise AdapterError(
                f"tags: wanted 1 to 40 lower-case letters, digits and . _ + # - inside, got {shortened(tag)}"
            )
    return tuple(found)
