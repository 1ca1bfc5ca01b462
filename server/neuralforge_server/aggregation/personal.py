"""A is shared, every client keeps a B of its own (FedSA-LoRA).

Guo et al. 2024, "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (ICLR 2025; arXiv 2410.01463):
A learns what clients have in common, B what is particular to each. Clients train both and send A's delta; the
coordinator's B stays as it was drawn, zero, and no one adapter is served in the end.
"""

from __future__ import annotations

from neuralforge_server.aggregation.deltas import DeltaMethod
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.robust import Rule


def personal(*, rule: Rule | None, optimizer: ServerOptimizer) -> DeltaMethod:
    """Every round shares A; the plan says `personal="B"`."""
    return DeltaMethod(name="personal", parts=("A",), rule=rule, optimizer=optimizer, compares=False)
