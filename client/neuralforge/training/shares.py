"""Batches in which every group of examples has its share, as a source of batches for `LoRATrainer.train`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from neuralforge.data.batch import Batch
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.source import examples_digest
from neuralforge_common.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """`source=Shares(groups=…, shares=…)`: `groups` names the group of each example, by its index.

    Shares are numbers above 0, taken in proportion to their sum.
    """

    groups: Sequence[str]
    shares: Mapping[str, float]

    def __call__(
        self, examples: Sequence[TokenizedExample], *, batch_size: int, accumulation: int, seed: int
    ) -> SharesSource:
        """The source of one run; raises TrainingError where a group with a share has no example."""
        parts = {name: [e for e in examples if self.groups[e.index] == name] for name in self.shares}
        empty = [name for name, part in parts.items() if not part]
        if empty:
            raise TrainingError(f"{', '.join(empty)}: no example to draw, wanted a share of the examples")
        total = sum(Fraction(str(share)) for share in self.shares.values())
        shares = {name: Fraction(str(share)) / total for name, share in self.shares.items()}
        return SharesSource(parts, shares, batch_size=batch_size, accumulation=accumulation, seed=seed)


class SharesSource:
    """Each next example is of the group that is furthest behind its share.

    So after n examples each of K groups has had its share of n, give or take less than K, whatever the batches' sizes.
    A group's examples come in passes over all of them, each pass in an order of its own. All of it is a function of
    seed and step. An epoch is as many steps as there are examples; a small group with a large share is then seen more
    than once in it, and another not as a whole.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[TokenizedExample]],
        shares: Mapping[str, Fraction],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
    ) -> None:
        self._parts = [parts[name] for name in shares]
        self._shares = list(shares.values())
        self._names = list(shares)
        self._size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        self.examples = tuple(example for part in self._parts for example in part)
        self.steps_per_epoch = math.ceil(len(self.examples) / (batch_size * accumulation))
        self._drawn: list[tuple[int, int]] = []  # the n-th example: which group, and how many of it came before
        self._counts = [0] * len(self._parts)
        self._passes: dict[int, tuple[int, list[int]]] = {}

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of this step, all of the same size, sorted by length to be padded less."""
        count = self._size * self._accumulation
        chosen = [self._example(*place) for place in self._places((step + 1) * count)[step * count :]]
        chosen.sort(key=lambda example: (example.length, example.index))
        return [Batch(examples=tuple(chosen[i : i + self._size])) for i in range(0, count, self._size)]

    def drawn(self, steps: int) -> dict[str, int]:
        """How many examples of each group so many steps see."""
        places = self._places(steps * self._size * self._accumulation)
        return {name: sum(group == place[0] for place in places) for group, name in enumerate(self._names)}

    def digest(self) -> str:
        """Of the groups' tokens, their shares and the three numbers."""
        shares = ",".join(f"{name}={share}" for name, share in zip(self._names, self._shares, strict=True))
        numbers = f"shares {shares} {self._size} {self._accumulation} {self._seed} "
        return hashlib.blake2b((numbers + examples_digest(*self._parts)).encode(), digest_size=16).hexdigest()

    def _places(self, count: int) -> list[tuple[int, int]]:
        while len(self._drawn) < count:
            n = len(self._drawn) + 1
            behind = [share * n - had for share, had in zip(self._shares, self._counts, strict=True)]
            group = behind.index(max(behind))
            self._drawn.append((group, self._counts[group]))
            self._counts[group] += 1
        return self._drawn[:count]

    def _example(self, group: int, number: int) -> TokenizedExample:
        part = self._parts[group]
        turn, place = divmod(number, len(part))
        if self._passes.get(group, (-1, []))[0] != turn:
            # The key says whose order it is, the counter which pass: no two groups share a draw.
            key, counter = np.array([self._seed, turn], np.uint64), np.array([0, 0, group, 4], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
            self._passes[group] = (turn, [int(i) for i in generator.permutation(len(part))])
        return part[self._passes[group][1][place]]
