"""The sum of masked updates, and what takes the masks off that did not cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from neuralforge_common.errors import FederationError
from neuralforge_common.secagg.fixed_point import DoubleArray, FixedPoint, Words, unpack
from neuralforge_common.secagg.keys import agreed_key, commitment, derived_key, public_bytes
from neuralforge_common.secagg.masks import Mask, apply_masks
from neuralforge_common.secagg.roster import Roster
from neuralforge_common.secagg.shamir import combine


class MaskedSum:
    """Masked updates of `size` values being added up; memory does not grow with their number."""

    def __init__(self, size: int, form: FixedPoint) -> None:
        self._form = form
        self._total: Words = np.zeros(size, form.dtype)

    def add(self, data: bytes) -> None:
        """Add one client's bytes; raises FederationError where they are not of the agreed form."""
        words = unpack(data, count=self._total.size, form=self._form)
        np.add(self._total, words, out=self._total)

    def unmask(self, masks: Sequence[Mask]) -> DoubleArray:
        """The sum of the updates, once these masks are taken off it."""
        apply_masks(self._total, [mask.undone for mask in masks])
        return self._form.decode(self._total)


def left_masks(
    roster: Roster,
    dealers: Sequence[str],
    survivors: Sequence[str],
    *,
    seeds: Mapping[str, Mapping[int, bytes]],
    mask_keys: Mapping[str, Mapping[int, bytes]],
) -> list[Mask]:
    """What still lies on the survivors' sum: each one's own mask, and those that it shares with clients that dropped.

    `seeds` and `mask_keys` are shares: client → point → share.

    Raises:
        FederationError: too few shares of somebody's secret, or such as do not give what was promised.
    """
    masks = []
    for name in survivors:
        seed = combine(seeds.get(name, {}), roster.needed_shares(name))
        if commitment(seed, name) != roster.by_name[name].promise:
            raise FederationError(f"the shares of {name} do not give the seed that it has promised")
        masks.append(Mask(derived_key(seed, "own mask", roster.view, (name,)), True))
    for name in sorted(set(dealers) - set(survivors)):
        neighbours = roster.graph[name].intersection(survivors)
        if not neighbours:
            continue  # no mask of its lies on the sum
        own = X25519PrivateKey.from_private_bytes(combine(mask_keys.get(name, {}), roster.needed_shares(name)))
        if public_bytes(own) != roster.by_name[name].mask_key:
            raise FederationError(f"the shares of {name} do not give the key that belongs to its public one")
        for other in sorted(neighbours):
            first, second = sorted((name, other))
            key = agreed_key(own, roster.by_name[other].mask_key, "pair mask", roster.view, (first, second))
            masks.append(Mask(key, first == other))  # as the survivor has put it on
    return masks
