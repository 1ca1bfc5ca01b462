"""What must hold between the keys of `privacy:` and `central:` and everything else, with the reason for each."""

from __future__ import annotations

from collections.abc import Container, Iterator

from neuralforge_common.config.document import Conflict
from neuralforge_common.errors import PrivacyError
from neuralforge_server.config import FederationConfig

_NO_CENTRAL = {
    "stacking": "factors every client's matrices by themselves and passes them on, and noise on a sum hides none of it",
    "residual": "passes on products of every client's matrices, and noise on the sum of their updates hides none of it",
    "svd": "factors the sum of products of every client's matrices, which no clipping of updates bounds",
    "personal": "leaves every client a B of its own, which no noise of the coordinator reaches",
}


def privacy_conflicts(config: FederationConfig) -> Iterator[Conflict]:
    """Yields every broken rule."""
    if config.privacy.enabled:
        yield from _of_training(config)
    if config.central.enabled:
        yield from _of_central(config)


def privacy_notices(config: FederationConfig, given: Container[str]) -> Iterator[str]:
    """Yields a line for each setting without effect."""
    sections = {"privacy.enabled": config.privacy.enabled, "central.enabled": config.central.enabled}
    by = next((key for key, is_on in sections.items() if is_on), "secure_aggregation.trust: peers")
    if config.counts_clients_alike:
        for key, value in (("weighting", config.aggregation.weighting), ("max_weight", None)):
            if f"aggregation.{key}" in given and value != "uniform":
                yield f"aggregation.{key} has no effect with {by}: every client counts alike"
    if config.privacy.enabled and "federation.evaluate_every" in given and config.federation.evaluate_every:
        yield "federation.evaluate_every has no effect with privacy.enabled: held-out figures stay with the clients"
    if "central.target_quantile" in given and not config.central.adaptive_clip:
        yield "central.target_quantile has no effect without central.adaptive_clip: true"


def _of_training(config: FederationConfig) -> Iterator[Conflict]:
    private, steps = config.privacy, config.training.resolved_steps
    if steps is None:
        yield (
            ("training.epochs", "privacy.enabled"),
            "the length of an epoch is how much data a client has, which privacy keeps: wanted training.steps",
        )
        return
    yield from _of_budget(
        config,
        "privacy",
        sample_rate=private.sample_rate,
        steps=steps,
        said=f"{config.federation.rounds} rounds of {steps} steps",
    )


def _of_central(config: FederationConfig) -> Iterator[Conflict]:
    central, federation, aggregation = config.central, config.federation, config.aggregation
    if aggregation.method in _NO_CENTRAL:
        yield (
            ("central.enabled", "aggregation.method"),
            f"{aggregation.method} {_NO_CENTRAL[aggregation.method]}: wanted mean, frozen-a or alternating",
        )
    if aggregation.robust != "none":
        yield (
            ("central.enabled", "aggregation.robust"),
            f"{aggregation.robust} weighs an update by what the others sent, so that one client can move a round by "
            "more than central.clip: wanted aggregation.robust: none (central clips by itself)",
        )
    if federation.over_select > 1 and federation.sample is not None:
        yield (
            ("federation.over_select", "central.enabled"),
            "where the first to answer count, a client's update decides whether another one's counts: wanted 1",
        )
    if central.client_rate < 1:
        for key, value in (("sample", federation.sample), ("quorum", federation.quorum)):
            if value is not None:
                yield (
                    (f"federation.{key}", "central.client_rate"),
                    f"cannot be used together with central.client_rate {central.client_rate:g}: a coin decides for "
                    "each client, and the round counts however many that makes",
                )
    yield from _of_budget(
        config, "central", sample_rate=central.client_rate, steps=1, said=f"{federation.rounds} rounds"
    )


def _of_budget(
    config: FederationConfig, section: str, *, sample_rate: float, steps: int, said: str
) -> Iterator[Conflict]:
    # Numpy takes its time: only for whoever asks for privacy.
    from neuralforge_common.accounting import Steps, epsilon
    from neuralforge_server.from_config import central_of, privacy_of

    asked = config.privacy if section == "privacy" else config.central
    noise = asked.noise_multiplier
    if noise is None:
        try:
            (privacy_of if section == "privacy" else central_of)(config)
        except PrivacyError as fault:
            yield (f"{section}.target_epsilon", f"{section}.delta"), fault.message
        return
    history = [Steps(sample_rate=sample_rate, noise_multiplier=noise, count=steps * config.federation.rounds)]
    spent = epsilon(history, asked.delta)
    if spent > asked.target_epsilon:
        yield (
            (f"{section}.noise_multiplier", f"{section}.target_epsilon"),
            f"{noise:g} comes to ε = {spent:.3g} in {said}, {section}.target_epsilon is {asked.target_epsilon:g}: "
            "leave it out to have it computed",
        )
