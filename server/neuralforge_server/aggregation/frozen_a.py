"""A stays as it was drawn, B alone is trained and averaged (FFA-LoRA).

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (ICLR; arXiv 2403.12313). Exact, since
avg(Bᵢ)·A = avg(Bᵢ·A), half the bytes, and noise for privacy is not multiplied with noise; less can be learnt at the
same rank.
"""

from __future__ import annotations

from neuralforge_server.aggregation.deltas import DeltaMethod
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.robust import Rule


def frozen_a(*, rule: Rule | None, optimizer: ServerOptimizer) -> DeltaMethod:
    """Every round trains B."""
    return DeltaMethod(name="frozen-a", parts=("B",), rule=rule, optimizer=optimizer)
