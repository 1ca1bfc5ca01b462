"""Which examples stand or fall together: the unit that two neighbouring datasets differ by."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.errors import PrivacyError
from neuralforge_common.privacy import Unit


def unit_ids(examples: Sequence[Example], unit: Unit) -> list[str]:
    """The id of each example's unit. A file that was renamed is another unit; two repositories of one name are one.

    Raises:
        PrivacyError: an example does not say which file or repository it is from.
    """
    match unit:
        case "sample":
            return [f"sample {example.id}" for example in examples]
        case "file":
            nameless = sum(not example.path for example in examples)
            names = [f"file {example.repo}\0{example.path}" for example in examples]
        case "repository":
            nameless = sum(not example.repo for example in examples)
            names = [f"repository {example.repo}" for example in examples]
    if nameless:
        raise PrivacyError(
            f"privacy: unit: {nameless:,} of {len(examples):,} examples do not say which {unit} they are from",
            hint="take the examples from a source tree or a repository, or protect each by itself: unit: sample",
        )
    return names


def by_unit(examples: Sequence[TokenizedExample], ids: Sequence[str]) -> Mapping[str, tuple[TokenizedExample, ...]]:
    """The examples of each unit; `ids` are those of `unit_ids`, found by an example's index."""
    units: dict[str, list[TokenizedExample]] = {}
    for example in examples:
        units.setdefault(ids[example.index], []).append(example)
    return {unit: tuple(members) for unit, members in units.items()}


def hidden(unit_id: str, key: bytes) -> str:
    """32 hex digits that tell a unit from any other, and nothing to whoever has no `key` (HMAC-SHA256)."""
    return hmac.digest(key, unit_id.encode("utf-8", "surrogatepass"), "sha256")[:16].hex()
