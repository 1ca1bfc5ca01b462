"""Who shares secrets and masks with whom: everybody with everybody, or in a sparse graph above 20 clients.

The sparse one is Bell et al.'s (2020, §3): a Harary graph over a random order of the clients, each joined to the k/2
before and the k/2 behind it on a circle. The order follows from a hash of everybody's fresh keys, so that nobody
chooses it: a coordinator can only try many keys of clients that it controls (docs/secure-aggregation.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence

from neuralforge_common.secagg.terms import FEWEST

COMPLETE_UP_TO = 20


def fewest_neighbours(clients: int) -> int:
    """The sparsest graph that clients agree to: 2·⌈4·log₂ n⌉ neighbours each, all of them up to 20 clients.

    With a fifth of the clients gone and another fifth in league with the coordinator, chosen at random, fewer than one
    round in a million has a neighbourhood that cannot be unmasked, or one that could be unmasked alone.
    """
    if clients <= COMPLETE_UP_TO:
        return clients - 1
    return min(clients - 1, 2 * math.ceil(4 * math.log2(clients)))


def needed(share: float, holders: int) -> int:
    """How many of those who hold parts of a secret must give theirs: more than the share, three at least."""
    return max(FEWEST, math.floor(share * holders) + 1)


def graph_of(names: Sequence[str], neighbours: int, seed: bytes) -> dict[str, frozenset[str]]:
    """Everybody's neighbours, `neighbours` of them (rounded up to an even number), in an order that `seed` decides."""
    count = len(names)
    reach = math.ceil(neighbours / 2)
    if count <= COMPLETE_UP_TO or 2 * reach >= count - 1:
        return {name: frozenset(names) - {name} for name in names}
    circle = sorted(names, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    return {
        name: frozenset(circle[(place + step) % count] for step in range(-reach, reach + 1)) - {name}
        for place, name in enumerate(circle)
    }


def is_connected(graph: Mapping[str, frozenset[str]], among: Collection[str]) -> bool:
    """Whether those `among` hang together: if not, their parts could be summed up one by one."""
    left = set(among)
    reached = [left.pop()] if left else []
    while reached and left:
        found = graph[reached.pop()] & left
        left -= found
        reached += found
    return not left
