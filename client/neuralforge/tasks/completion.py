"""The task that every adapter learns: what was written next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from neuralforge.data.example import Example


@dataclass(frozen=True, slots=True)
class Completion:
    """Examples as they are."""

    name = "completion"

    def examples(self, example: Example) -> Iterator[Example]:
        """The example itself."""
        yield example
