"""What an adapter comes from: the one that its training went on from, or those that it was composed of."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from neuralforge_common.errors import AdapterError
from neuralforge_common.strict_json import is_plain_text, shortened

MAX_PARENTS = 64

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The adapter that a training went on from: `digest` is the SHA-256 of its weights' file as it was then.

    Raises:
        AdapterError: a value that no adapter can have.
    """

    name: str
    version: str
    digest: str

    def __post_init__(self) -> None:
        _check_identity("parent", self.name, self.version, self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An adapter that went into another: `digest` is the SHA-256 of its weights' file, `weight` its factor.

    Raises:
        AdapterError: a value that no parent can have.
    """

    name: str
    version: str
    digest: str
    weight: float

    def __post_init__(self) -> None:
        _check_identity("composition", self.name, self.version, self.digest)
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight) or abs(self.weight) > 1e6:
            raise AdapterError(f"composition: weight: wanted a finite number, got {shortened(self.weight)}")
        object.__setattr__(self, "weight", float(self.weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """How an adapter was made of `parents`: `method` with its options in words.

    `learnt_on` is the number of samples that the weights were learnt on, None where somebody chose them.

    Raises:
        AdapterError: a value that no composition can have.
    """

    method: str
    parents: tuple[Parent, ...]
    learnt_on: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or len(self.method) > 1024 or not is_plain_text(self.method):
            raise AdapterError(f"composition: method: wanted one line of text, got {shortened(self.method)}")
        if not 1 <= len(self.parents) <= MAX_PARENTS:
            raise AdapterError(f"composition: wanted 1 to {MAX_PARENTS} parents, got {len(self.parents):,}")
        count = self.learnt_on
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 2**53):
            raise AdapterError(f"composition: learnt_on: wanted a whole number from 1 on, got {shortened(count)}")


def decode_predecessor(value: object) -> Predecessor:
    """Reads what JSON made of a `Predecessor`; unknown keys are ignored.

    Raises:
        AdapterError: it is not one.
    """
    document = _object("parent", value)
    return Predecessor(**{key: document.get(key) for key in ("name", "version", "digest")})  # type: ignore[arg-type]


def decode_composition(value: object) -> Composition:
    """Reads what JSON made of a `Composition`; unknown keys are ignored.

    Raises:
        AdapterError: it is not one.
    """
    document = _object("composition", value)
    listed = document.get("parents")
    if not isinstance(listed, list) or len(listed) > MAX_PARENTS:
        raise AdapterError(f"composition: parents: wanted a list of 1 to {MAX_PARENTS}, got {shortened(listed)}")
    parents = []
    for each in listed:
        facts = _object("composition: parents", each)
        keys = ("name", "version", "digest", "weight")
        if missing := [key for key in keys if key not in facts]:
            raise AdapterError(f"composition: parents: {missing[0]} is missing")
        parents.append(Parent(**{key: facts[key] for key in keys}))  # type: ignore[arg-type]  # checked there
    return Composition(
        method=document.get("method", ""),  # type: ignore[arg-type]  # checked there
        parents=tuple(parents),
        learnt_on=document.get("learnt_on"),  # type: ignore[arg-type]
    )


def _check_identity(what: str, name: object, version: object, digest: object) -> None:
    for key, text in (("name", name), ("version", version)):
        if not isinstance(text, str) or len(text) > 1024 or not is_plain_text(text):
            raise AdapterError(f"{what}: {key}: wanted one line of text, got {shortened(text)}")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise AdapterError(f"{what}: digest: wanted 64 hex digits, got {shortened(digest)}")


def _object(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise AdapterError(f"{name}: wanted an object, got {shortened(value)}")
    return value
