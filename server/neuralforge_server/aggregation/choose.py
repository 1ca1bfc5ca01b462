"""A way to aggregate, from plain values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from neuralforge_common.errors import ConfigError
from neuralforge_server.aggregation.alternating import alternating
from neuralforge_server.aggregation.deltas import DeltaMethod
from neuralforge_server.aggregation.frozen_a import frozen_a
from neuralforge_server.aggregation.mean import mean
from neuralforge_server.aggregation.method import Method
from neuralforge_server.aggregation.optimizer import OptimizerName, ServerOptimizer
from neuralforge_server.aggregation.personal import personal
from neuralforge_server.aggregation.residual import Residual
from neuralforge_server.aggregation.robust import (
    Rule,
    RuleName,
    clipped_mean,
    coordinate_median,
    geometric_median,
    multi_krum,
    trimmed_mean,
)
from neuralforge_server.aggregation.stacking import Stacking
from neuralforge_server.aggregation.svd import Svd

MethodName: TypeAlias = Literal["mean", "frozen-a", "alternating", "stacking", "residual", "svd", "personal"]

_OF_DELTAS: dict[str, Callable[..., DeltaMethod]] = {
    "mean": mean,
    "frozen-a": frozen_a,
    "alternating": alternating,
    "personal": personal,
}


def make_method(
    *,
    method: MethodName = "mean",
    robust: RuleName = "none",
    trim: float = 0.2,
    byzantine: int = 1,
    optimizer: OptimizerName = "fedavg",
    server_learning_rate: float = 1.0,
    momentum: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    residual_rank: int = 32,
    seed: int = 0,
) -> Method:
    """The method with its robust rule and server optimizer; values that it does not use are ignored.

    Raises:
        ConfigError: a rule or an optimizer that would mean nothing for this method.
    """
    steps = ServerOptimizer(name=optimizer, learning_rate=server_learning_rate, momentum=momentum, beta2=beta2, tau=tau)
    if method in _OF_DELTAS:
        return _OF_DELTAS[method](rule=_rule(robust, trim=trim, byzantine=byzantine), optimizer=steps)
    if robust not in ("none", "clip"):
        raise ConfigError([f"{robust} compares coordinates, and the factors of {method} have a free basis"])
    if method != "residual" and not steps.is_plain:
        raise ConfigError([f"{method} factors its matrices anew every round: no server step goes on from them"])
    clip = robust == "clip"
    if method == "stacking":
        return Stacking(residual_rank=residual_rank, seed=seed, clip=clip)
    if method == "residual":
        return Residual(residual_rank=residual_rank, optimizer=steps, clip=clip)
    if method == "svd":
        return Svd(clip=clip)
    raise ConfigError([f"no way to aggregate is called {method}"])


def _rule(name: RuleName, *, trim: float, byzantine: int) -> Rule | None:
    rules: dict[str, Rule | None] = {
        "none": None,
        "clip": clipped_mean,
        "median": coordinate_median,
        "trimmed-mean": partial(trimmed_mean, trim=trim),
        "multi-krum": partial(multi_krum, byzantine=byzantine),
        "geometric-median": geometric_median,
    }
    if name not in rules:
        raise ConfigError([f"no robust rule is called {name}"])
    return rules[name]
