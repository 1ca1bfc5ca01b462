"""A new block of components for each task, the earlier ones frozen, and all of them one adapter again at the end.

The walk of a task, `blocks.learn_block`: `grow` the adapter, train its new components alone, and `merge` all of it into
the rank of before; for each language, weigh the blocks (`gates.py`).
Nothing that was learnt is overwritten, as in Progressive Networks (Rusu et al. 2016), but the tasks' blocks stand side
by side in one adapter of the summed rank, (alpha / rank) · Σ_k w_k · B_k · A_k, that anything can serve.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.low_rank import product_norm, refactor


def grow(spec: AdapterSpec, state: AdapterState, rank: int, *, seed: int = 0) -> tuple[AdapterSpec, AdapterState]:
    """The same adapter with `rank` more components: A drawn from `seed`, B zero, so that it computes the same.

    Alpha grows with the rank: the factor alpha / rank, and so the earlier tasks' part, stays.
    """
    layout = AdapterLayout.of(state)
    wider = layout.with_rank(layout.rank + rank)
    vector = layout.resized(layout.flatten(state), wider.rank)
    fresh = layout.with_rank(rank)
    for (_, a, _), (_, drawn, _) in zip(wider.factors(vector), fresh.factors(fresh.draw(seed)), strict=True):
        a[layout.rank :] = drawn
    return replace(spec, rank=wider.rank, alpha=spec.scaling * wider.rank), wider.unflatten(vector)


def merge(spec: AdapterSpec, state: AdapterState, rank: int) -> tuple[AdapterSpec, AdapterState, float]:
    """The best adapter of `rank` for this one (Eckart & Young 1936), and what it misses, ‖BA − B'A'‖ / ‖BA‖ over all.

    The factor alpha / rank stays.
    """
    layout = AdapterLayout.of(state)
    narrow = layout.with_rank(rank)
    vector = np.zeros(narrow.size, np.float32)
    missed = whole = 0.0
    modules = zip(layout.factors(layout.flatten(state).astype(np.float64)), narrow.factors(vector), strict=True)
    for (_, a, b), (_, a_new, b_new) in modules:
        b_new[...], a_new[...] = refactor(b, a, rank)
        missed += product_norm(np.hstack([b, -b_new.astype(np.float64)]), np.vstack([a, a_new.astype(np.float64)])) ** 2
        whole += product_norm(b, a) ** 2
    error = (missed / whole) ** 0.5 if whole > 0 else 0.0
    return replace(spec, rank=rank, alpha=spec.scaling * rank), narrow.unflatten(vector), error
