"""What `secure_aggregation.trust: peers` cannot be used together with, with the reason for each."""

from __future__ import annotations

from collections.abc import Container, Iterator

from neuralforge_common.config.document import Conflict
from neuralforge_common.secagg.terms import FEWEST
from neuralforge_server.config import FederationConfig

_TRUST = "secure_aggregation.trust"
_NOT_LINEAR = {
    "stacking": "passes every client's matrices on by themselves",
    "residual": "needs the product of every client's matrices",
    "svd": "needs the product of every client's matrices",
    "personal": "has each client train from matrices of its own: a state of zeros silences those who have none yet",
}


def masking_conflicts(config: FederationConfig) -> Iterator[Conflict]:
    """Yields every broken rule."""
    if config.secure_aggregation.trust != "peers":
        return
    federation, aggregation = config.federation, config.aggregation
    if why := _NOT_LINEAR.get(aggregation.method):
        yield (
            (_TRUST, "aggregation.method"),
            f"with peers only the sum of updates is seen, and {aggregation.method} {why}: wanted mean, frozen-a or "
            "alternating",
        )
    if aggregation.robust != "none":
        yield (
            (_TRUST, "aggregation.robust"),
            f"with peers no update is seen by itself, and {aggregation.robust} compares them: wanted "
            "aggregation.robust: none",
        )
    if config.central.enabled:
        yield (
            (_TRUST, "central.enabled"),
            "with peers no update is seen by itself, and central clips each one: wanted privacy.enabled, which every "
            "client sees to itself",
        )
    if config.training.resolved_steps is None:
        yield (
            (_TRUST, "training.epochs"),
            "the range of a masked value follows from how many steps are taken: wanted training.steps",
        )
    if config.wire.format != "fp32":
        yield (
            (_TRUST, "wire.format"),
            f"masked values are whole numbers of their own, {config.wire.format} cannot carry them: wanted fp32",
        )
    if federation.over_select > 1 and federation.sample is not None:
        yield (
            (_TRUST, "federation.over_select"),
            "a sum is unmasked by more than half of those who were asked, so it cannot be closed early: wanted 1",
        )
    for key in ("min_clients", "sample"):
        count = getattr(federation, key)
        if count is not None and count < FEWEST:
            yield (
                (_TRUST, f"federation.{key}"),
                f"{count} are too few to hide in a sum: wanted {FEWEST} or more",
            )


def masking_notices(config: FederationConfig, given: Container[str]) -> Iterator[str]:
    """Yields what to know, and a line for each setting without effect."""
    if config.secure_aggregation.trust == "peers":
        yield "secure aggregation is experimental: docs/secure-aggregation.md says what it promises and what not"
        return
    for key in ("threshold", "neighbours"):
        if f"secure_aggregation.{key}" in given:
            yield f"secure_aggregation.{key} has no effect without {_TRUST}: peers"
