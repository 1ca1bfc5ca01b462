"""A federation's state as the one adapter that is sent to clients and served in the end."""

from __future__ import annotations

import numpy as np

from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout
from neuralforge_server.aggregation.method import GlobalState


def served(state: GlobalState) -> tuple[AdapterLayout, FloatArray]:
    """Trained components first, frozen ones behind them, as one adapter of rank r + q with the scaling of both.

    Its alpha is scaling · (r + q), see `RoundPlan.full_spec`. Raises AdapterError where the rank exceeds what an
    adapter can have.
    """
    if state.frozen is None or not state.frozen_rank:
        return state.layout, state.vector
    rank = state.layout.rank
    frozen = state.layout.with_rank(state.frozen_rank)
    whole = state.layout.with_rank(rank + state.frozen_rank)
    vector = np.empty(whole.size, np.float32)
    for (_, a, b), (_, a_trained, b_trained), (_, a_frozen, b_frozen) in zip(
        whole.factors(vector), state.layout.factors(state.vector), frozen.factors(state.frozen), strict=True
    ):
        a[:rank], a[rank:] = a_trained, a_frozen
        b[:, :rank], b[:, rank:] = b_trained, b_frozen
    return whole, vector
