"""What of a state is a client's own, and what of a delta is on its way: arithmetic on flat vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import RoundPlan
from neuralforge_common.wire import decode, encode


def client_state(
    plan: RoundPlan, layout: AdapterLayout, state: FloatArray, kept: Mapping[str, FloatArray], *, rank: int
) -> FloatArray:
    """A coordinator's state (layout.size,) as a client of this rank holds it.

    Components that it cannot train are zero, frozen ones stay; where a part is personal and `kept` has it, that one
    stands in the place of the coordinator's.
    """
    vector = state.copy()
    for _, a, b in layout.factors(vector):
        a[rank : plan.spec.rank] = 0
        b[:, rank : plan.spec.rank] = 0
    part = plan.personal
    if part == "none" or part not in kept:
        return vector
    small = layout.with_rank(rank)
    own = np.zeros(small.size, np.float32)
    own[small.part_slice(part)] = kept[part]
    for (_, a, b), (_, own_a, own_b) in zip(layout.factors(vector), small.factors(own), strict=True):
        if part == "A":
            a[:rank] = own_a
        else:
            b[:, :rank] = own_b
    return vector


def add_unsent(
    plan: RoundPlan, small: AdapterLayout, delta: FloatArray, unsent: FloatArray | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Error feedback (see `wire`): the delta to send, what of it arrives, and what is then left for later rounds.

    `delta` is `plan.part` of `small`, `unsent` all of it: what one part is owed waits for a round of that part.
    """
    left = np.zeros(small.size, np.float32) if unsent is None else unsent.copy()
    place = small.part_slice(plan.part)
    delta = delta + left[place]
    arrives = decode(encode(delta, plan.wire), count=delta.size, wire=plan.wire)
    left[place] = delta - arrives
    return delta, arrives, left
