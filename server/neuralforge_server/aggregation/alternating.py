"""B in odd rounds, A in even ones (RoLoRA).

Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (NeurIPS; arXiv
2502.01755; earlier as "Robust Federated Finetuning of Foundation Models via Alternating Minimization of LoRA", 2024).
Exact in every round, half the bytes, and A is learnt as well. B comes first: at the beginning it is zero, and A would
have no gradient.
"""

from __future__ import annotations

from neuralforge_server.aggregation.deltas import DeltaMethod
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.robust import Rule


def alternating(*, rule: Rule | None, optimizer: ServerOptimizer) -> DeltaMethod:
    """Round 1 trains B, round 2 A, and so on."""
    return DeltaMethod(name="alternating", parts=("B", "A"), rule=rule, optimizer=optimizer)
