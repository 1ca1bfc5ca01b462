"""The weighted mean of A and of B (FedIT).

Zhang et al. 2023, "Towards Building the Federated GPT: Federated Instruction Tuning" (arXiv 2305.05644), on McMahan
et al. 2017, FedAvg. Cheap, streams, and adds up under secure aggregation; not exact: mean(B)·mean(A) misses the
covariance of the clients' changes, which `exactness_error` reports.
"""

from __future__ import annotations

from neuralforge_server.aggregation.deltas import DeltaMethod
from neuralforge_server.aggregation.optimizer import ServerOptimizer
from neuralforge_server.aggregation.robust import Rule


def mean(*, rule: Rule | None, optimizer: ServerOptimizer) -> DeltaMethod:
    """Every round trains A and B."""
    return DeltaMethod(name="mean", parts=("both",), rule=rule, optimizer=optimizer)
