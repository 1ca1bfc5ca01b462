"""How much of what is held out stands, or nearly stands, in what is learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Of `examples` held out, how many are there to the token in the training side, how many nearly (see `dedup`)."""

    examples: int
    exact: int
    near: int

    @property
    def share(self) -> float:
        """The share of both."""
        return (self.exact + self.near) / self.examples if self.examples else 0.0


def measure_leakage(train: Iterable[Example], held_out: Iterable[Example]) -> Leakage:
    """Compare each side's completions, behind the lines that they continue."""
    index = Deduplicator()
    for example in train:
        index.add(example_text(example))
    found = [index.find(example_text(example)) for example in held_out]
    return Leakage(examples=len(found), exact=found.count("exact"), near=found.count("near"))
