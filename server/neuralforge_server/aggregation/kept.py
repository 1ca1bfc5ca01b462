"""Updates that a method must see side by side: kept until the round ends, then in the order of their clients."""

from __future__ import annotations

from neuralforge_common.adapter import FloatArray
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_server.aggregation.method import Update


def at_full_rank(update: Update, layout: AdapterLayout, part: Part) -> FloatArray:
    """The delta as one of the federation's rank: a client of a lower rank changed nothing in the other components.

    Raises:
        FederationError: an update that admission would not have let through.
    """
    if update.part != part or not 1 <= update.rank <= layout.rank:
        raise FederationError(
            f"{update.client}: wanted {part} at a rank up to {layout.rank}, got {update.part} at {update.rank}"
        )
    own = layout.with_rank(update.rank)
    if update.delta.shape != (own.part_size(part),):
        raise FederationError(f"{update.client}: wanted {own.part_size(part):,} values, got {update.delta.shape}")
    return own.resized(update.delta, layout.rank, part=part)


class Kept:
    """The updates of one round at the federation's rank, each client once."""

    def __init__(self, layout: AdapterLayout, part: Part) -> None:
        self._layout = layout
        self._part = part
        self._deltas: dict[str, tuple[FloatArray, int]] = {}

    def __len__(self) -> int:
        return len(self._deltas)

    def add(self, update: Update) -> None:
        """Keep an update; raises FederationError for a client's second one."""
        if update.client in self._deltas:
            raise FederationError(f"{update.client} has an update in this round already")
        self._deltas[update.client] = at_full_rank(update, self._layout, self._part), update.weight

    def in_order(self) -> tuple[list[FloatArray], list[int]]:
        """Deltas and weights in the order of the clients' names; raises FederationError where there are none."""
        if not self._deltas:
            raise FederationError("no update was added: there is nothing to aggregate")
        pairs = [self._deltas[client] for client in sorted(self._deltas)]
        return [delta for delta, _ in pairs], [weight for _, weight in pairs]
