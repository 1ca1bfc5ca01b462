"""The best rank-r factors of the average product (FlexLoRA, HLoRA).

Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(FlexLoRA; NeurIPS; arXiv 2402.11505); HLoRA (2025) reconstructs the same way for mixed ranks. As good as any adapter of
this rank can be, not exact beyond it. Components are sorted by singular value with √σ on both sides, so a client of a
lower rank holds the best approximation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.low_rank import refactor
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState
from neuralforge_server.aggregation.products import Cohort, ErrorMeter, ProductFold


@dataclass(frozen=True, slots=True, kw_only=True)
class Svd:
    """`clip` cuts deltas to the round's median norm."""

    clip: bool = False
    name: str = "svd"
    streaming: bool = False

    def initial(self, layout: AdapterLayout, *, seed: int) -> GlobalState:
        """A fresh adapter."""
        return GlobalState(layout=layout, vector=layout.draw(seed))

    def part(self, round_number: int) -> Part:
        """A and B, always."""
        return "both"

    def begin(self, state: GlobalState, round_number: int) -> Fold:
        """Start a round."""
        return ProductFold(state, self._finish, clip=self.clip)

    def _finish(self, cohort: Cohort) -> Aggregate:
        state = cohort.state
        vector = np.zeros(state.layout.size, np.float32)
        meter = ErrorMeter()
        for wanted, (_, a, b), (_, a_old, _) in zip(
            cohort.stacks(), state.layout.factors(vector), state.layout.factors(state.vector), strict=True
        ):
            b[...], a[...] = refactor(*wanted, state.layout.rank)
            # Where B and A are both zero neither has a gradient: a component that the product lacks keeps its A.
            missing = ~a.any(axis=1)
            a[missing] = a_old[missing]
            meter.add(wanted, (b, a))
        return Aggregate(
            state=replace(state, vector=vector),
            clients=len(cohort.deltas),
            exactness_error=meter.error(),
            figures={"clipped": float(cohort.clipped)} if self.clip else {},
        )
