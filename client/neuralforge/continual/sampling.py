"""Which examples of an endless stream stay in a buffer of fixed size: a function of the seed and of what was seen.

    uniform     each example ever offered is equally likely to be there (Vitter 1985, "Random Sampling with a
                Reservoir", algorithm R).
    language,   each class is equally represented as far as the stream allows, and within a class each example is
    session     equally likely (Chrysakis & Moens 2020, "Online Continual Learning from Imbalanced Data", algorithm 1,
                CBRS).

The n-th draw depends on (seed, n) alone: a buffer that was put down and taken up again goes on as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Balance = Literal["uniform", "language", "session"]


@dataclass(slots=True, kw_only=True)
class Reservoir:
    """The decisions alone: `offer` says which slot an example takes; the slots themselves are somebody else's.

    `seen` counts everything ever offered by class, `full` holds the classes that have once been the largest (CBRS's
    word for them), `classes` what stands in each slot now.
    """

    size: int
    balanced: bool
    seed: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    full: set[str] = field(default_factory=set)
    classes: list[str] = field(default_factory=list)

    def offer(self, kind: str) -> int | None:
        """The slot for the next example, of this class; the number of slots for a new one, None to let it pass."""
        n = self.seen.total()
        self.seen[kind] += 1
        slot = self._slot(kind, n)
        if slot == len(self.classes):
            self.classes.append(kind)
        elif slot is not None:
            self.classes[slot] = kind
        return slot

    def shrink(self) -> list[int]:
        """Slots to keep where there are more than `size`, drawn evenly, in order; each class's share as it falls."""
        if len(self.classes) <= self.size:
            return list(range(len(self.classes)))
        chosen = _generator(self.seed, self.seen.total(), purpose=1).permutation(len(self.classes))[: self.size]
        kept = sorted(int(i) for i in chosen)
        self.classes = [self.classes[i] for i in kept]
        return kept

    def _slot(self, kind: str, n: int) -> int | None:
        if len(self.classes) < self.size:
            return len(self.classes)
        if self.size == 0:
            return None
        draw = _generator(self.seed, n)
        if not self.balanced:
            place = int(draw.integers(0, n + 1))
            return place if place < self.size else None
        held = Counter(self.classes)
        most = max(held.values())
        largest = {name for name, count in held.items() if count == most}
        self.full |= largest
        if kind not in self.full:
            return int(draw.choice(_slots_of(self.classes, largest)))
        # Algorithm R within the class: of its seen[kind] examples each stays with the same chance.
        mine = _slots_of(self.classes, {kind})
        place = int(draw.integers(0, self.seen[kind]))
        return mine[place] if place < len(mine) else None


def draw(count: int, size: int, *, seed: int, number: int) -> list[int]:
    """`size` of `count` places without repetition (all of them, where there are fewer), in random order."""
    return [int(i) for i in _generator(seed, number, purpose=2).permutation(count)[:size]]


def pass_order(count: int, *, seed: int, number: int) -> list[int]:
    """All places in the order of the `number`-th pass over them."""
    return [int(i) for i in _generator(seed, number, purpose=3).permutation(count)]


def reservoir_state(reservoir: Reservoir) -> dict[str, object]:
    """What must be kept, as JSON; `classes` follow from what stands in the slots."""
    return {"seed": reservoir.seed, "seen": dict(sorted(reservoir.seen.items())), "full": sorted(reservoir.full)}


def reservoir_from(state: Mapping[str, object], classes: Sequence[str], *, size: int, balanced: bool) -> Reservoir:
    """The other way; raises KeyError, TypeError or ValueError where `state` is not one of ours."""
    seed, seen, full = state["seed"], state["seen"], state["full"]
    if not (isinstance(seed, int) and isinstance(seen, dict) and isinstance(full, list)):
        raise TypeError("the reservoir's state")
    counts = Counter({str(name): int(count) for name, count in seen.items()})
    return Reservoir(
        size=size, balanced=balanced, seed=seed, seen=counts, full={str(name) for name in full}, classes=list(classes)
    )


def _slots_of(classes: Sequence[str], wanted: set[str]) -> list[int]:
    return [slot for slot, name in enumerate(classes) if name in wanted]


def _generator(seed: int, number: int, *, purpose: int = 0) -> np.random.Generator:
    # The key says whose stream it is, the counter where in it: no two purposes ever share a draw.
    key = np.array([seed, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], dtype=np.uint64)))
