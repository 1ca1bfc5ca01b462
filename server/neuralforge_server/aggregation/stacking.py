"""The clients' products are stacked onto the frozen components, and training begins afresh (FLoRA).

Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (NeurIPS;
arXiv 2409.05976). Theirs merges the stack into every client's base; here it stays beside the base as frozen components,
factored anew to `residual_rank`: exact while the average's rank is at most that, the best approximation beyond. The
trained components are drawn anew every round, with B = 0.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.low_rank import refactor
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState
from neuralforge_server.aggregation.products import Cohort, ErrorMeter, ProductFold, empty_frozen, frozen_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacking:
    """Frozen components of rank `residual_rank`; `clip` cuts deltas to the round's median norm."""

    residual_rank: int
    seed: int
    clip: bool = False
    name: str = "stacking"
    streaming: bool = False

    def initial(self, layout: AdapterLayout, *, seed: int) -> GlobalState:
        """A fresh adapter beside frozen components that add nothing yet."""
        rank = self.residual_rank
        return GlobalState(layout=layout, vector=layout.draw(seed), frozen_rank=rank, frozen=empty_frozen(layout, rank))

    def part(self, round_number: int) -> Part:
        """A and B, always."""
        return "both"

    def begin(self, state: GlobalState, round_number: int) -> Fold:
        """Start a round."""
        return ProductFold(state, lambda cohort: self._finish(cohort, round_number), clip=self.clip)

    def _finish(self, cohort: Cohort, round_number: int) -> Aggregate:
        state = cohort.state
        frozen = empty_frozen(state.layout, self.residual_rank)
        meter = ErrorMeter()
        for (left, right), (b_old, a_old), (_, a, b) in zip(
            cohort.stacks(),
            frozen_factors(state),
            state.layout.with_rank(self.residual_rank).factors(frozen),
            strict=True,
        ):
            wanted = np.hstack([b_old, left]), np.vstack([a_old, right])
            b[...], a[...] = refactor(*wanted, self.residual_rank)
            meter.add(wanted, (b, a))
        fresh = state.layout.draw(_seed_of(self.seed, round_number))
        return Aggregate(
            state=replace(state, vector=fresh, frozen_rank=self.residual_rank, frozen=frozen),
            clients=len(cohort.deltas),
            exactness_error=meter.error(),
            figures={"clipped": float(cohort.clipped)} if self.clip else {},
        )


def _seed_of(seed: int, round_number: int) -> int:
    """A seed for what follows this round, the same whenever it is asked for."""
    return int.from_bytes(hashlib.sha256(f"stacking {seed} {round_number}".encode()).digest()[:8], "little")
