"""What every way of aggregating is: a state of the whole federation, updates folded in one by one, a new state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """What a round starts from.

    `vector` (layout.size,) is trained; `frozen` (same modules, its own rank) is applied beside it and changed by
    aggregation alone; `moments` belong to the server's optimizer, each (layout.size,). Arrays are never written to.
    """

    layout: AdapterLayout
    vector: FloatArray
    frozen_rank: int = 0
    frozen: FloatArray | None = None
    moments: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One admitted delta: `delta` is a part of the adapter at the client's own `rank`, after − before, float32.

    A client of a lower rank trained the first `rank` components of the state (see `AdapterLayout.resized`).
    `weight` is a whole number ≥ 1. Updates are told apart and ordered by `client`. `norm` is the delta's Euclidean
    norm, to float32's precision, where admission has measured it: so that nobody reads the delta again for it.
    """

    client: str
    rank: int
    part: Part
    delta: FloatArray
    weight: int = 1
    norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a round came to.

    `exactness_error` is ‖served − avg(BA)‖ / ‖avg(BA)‖ over all modules (Frobenius), before the server's optimizer
    moves on from the mean; None where there is nothing to compare: a robust rule or personal matrices mean to serve
    something else. `figures` are further numbers for the round's record.
    """

    state: GlobalState
    clients: int
    exactness_error: float | None
    figures: Mapping[str, float] = field(default_factory=dict)


class Fold(Protocol):
    """A round's updates being added up; the result does not depend on their order, to the last bit."""

    def add(self, update: Update) -> None:
        """Take one update in; afterwards nobody needs it any more, unless the method says that it keeps all."""
        ...

    def finish(self) -> Aggregate:
        """The new state; raises FederationError where nothing was added."""
        ...


class Method(Protocol):
    """One way to aggregate. `streaming`: memory does not grow with the number of clients."""

    @property
    def name(self) -> str:
        """As the configuration names it."""
        ...

    @property
    def streaming(self) -> bool:
        """Whether updates are let go of as they come."""
        ...

    def initial(self, layout: AdapterLayout, *, seed: int) -> GlobalState:
        """The state before the first round, a fresh adapter of this layout."""
        ...

    def part(self, round_number: int) -> Part:
        """What clients train in this round."""
        ...

    def begin(self, state: GlobalState, round_number: int) -> Fold:
        """Start a round."""
        ...
