"""The mean of A and of B, and what it misses goes into frozen components (FedEx-LoRA).

Singhal et al. 2024, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models" (ACL
2025; arXiv 2410.09432). Theirs adds avg(BᵢAᵢ) − mean(B)·mean(A) to every client's base; here it stays beside the base
as frozen components, factored anew to `residual_rank`: exact while its rank is at most that. The residual is the
covariance of the changes, avg((ΔBᵢ − mean ΔB)·(ΔAᵢ − mean ΔA)), and is computed as that: nothing large cancels.

A server optimizer moves the trained components on from the mean; the residual stays what the mean misses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.low_rank import refactor
from neuralforge_server.aggregation.deltas import stepped
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.products import Cohort, ErrorMeter, ProductFold, empty_frozen, frozen_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """Frozen components of rank `residual_rank`; `clip` cuts deltas to the round's median norm."""

    residual_rank: int
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    clip: bool = False
    name: str = "residual"
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
        return ProductFold(state, self._finish, clip=self.clip)

    def _finish(self, cohort: Cohort) -> Aggregate:
        state = cohort.state
        mean = cohort.mean()
        exact = state.vector + mean
        frozen = empty_frozen(state.layout, self.residual_rank)
        meter = ErrorMeter()
        for (left, right), (b_old, a_old), (_, a, b), (_, a_exact, b_exact), (_, a_mean, b_mean) in zip(
            cohort.stacks(around=mean),
            frozen_factors(state),
            state.layout.with_rank(self.residual_rank).factors(frozen),
            state.layout.factors(exact),
            state.layout.factors(state.vector + mean.astype(np.float32)),
            strict=True,
        ):
            b[...], a[...] = refactor(np.hstack([b_old, left]), np.vstack([a_old, right]), self.residual_rank)
            wanted = np.hstack([b_old, left, b_exact]), np.vstack([a_old, right, a_exact])
            meter.add(wanted, (np.hstack([b, b_mean]), np.vstack([a, a_mean])))
        moved = stepped(self.optimizer, state, "both", mean)
        return Aggregate(
            state=replace(moved, frozen_rank=self.residual_rank, frozen=frozen),
            clients=len(cohort.deltas),
            exactness_error=meter.error(),
            figures={"clipped": float(cohort.clipped)} if self.clip else {},
        )
