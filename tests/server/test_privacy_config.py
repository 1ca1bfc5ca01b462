"""`privacy:` and `central:` of a coordinator: the noise that they come to, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_documents import faults_of

from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.config.document import Document
from neuralforge_server.config import ServerConfig
from neuralforge_server.config_rules import SERVER, resolve_server_config
from neuralforge_server.from_config import central_of, privacy_of, terms_of
from neuralforge_simulations.scenario_config import SCENARIO


def config_of(**keys: object) -> ServerConfig:
    return resolve_server_config(None, {key.replace("__", "."): value for key, value in keys.items()}, {}).config


def test_the_noise_is_what_all_steps_of_all_rounds_need_and_no_more() -> None:
    config = config_of(privacy__enabled=True, privacy__spare_rounds=0, federation__rounds=20, training__steps=30)
    terms = privacy_of(config)
    assert terms is not None
    at_once = Steps(sample_rate=0.05, noise_multiplier=terms.noise_multiplier, count=600)
    assert 7.98 < epsilon([at_once], 1e-5) <= 8
    round_by_round = [Steps(sample_rate=0.05, noise_multiplier=terms.noise_multiplier, count=30)] * 20
    assert epsilon(round_by_round, 1e-5) == pytest.approx(epsilon([at_once], 1e-5), rel=1e-12)


def test_spare_rounds_can_be_repeated_within_the_budget() -> None:
    config = config_of(privacy__enabled=True, federation__rounds=5, privacy__spare_rounds=3)
    terms = privacy_of(config)
    assert terms is not None
    used = [Steps(sample_rate=0.05, noise_multiplier=terms.noise_multiplier, count=20 * count) for count in (8, 9)]
    assert epsilon(used[:1], 1e-5) <= 8 < epsilon(used[1:], 1e-5)


def test_central_noise_is_for_whole_rounds_and_a_coin_for_each_client_needs_less() -> None:
    everybody = central_of(config_of(central__enabled=True, central__spare_rounds=0))
    some = central_of(config_of(central__enabled=True, central__spare_rounds=0, central__client_rate=0.1))
    assert everybody is not None
    assert some is not None
    assert some.noise_multiplier < 0.5 * everybody.noise_multiplier
    for terms in (everybody, some):
        cost = Steps(sample_rate=terms.client_rate, noise_multiplier=terms.noise_multiplier, count=10)
        assert 7.9 < epsilon([cost], 1e-5) <= 8


@pytest.mark.parametrize("section", ["privacy", "central"])
def test_under_privacy_clients_count_alike(section: str) -> None:
    assert terms_of(config_of(**{f"{section}__enabled": True})).weighting == "uniform"
    assert terms_of(config_of()).weighting == "examples"


def test_a_plan_says_what_a_client_must_do() -> None:
    terms = terms_of(config_of(privacy__enabled=True, privacy__unit="file", privacy__max_grad_norm=0.5))
    assert terms.privacy is not None
    assert (terms.privacy.unit, terms.privacy.max_grad_norm, terms.privacy.target_epsilon) == ("file", 0.5, 8.0)
    assert terms.privacy.divisor == 16, "no function of anybody's data"


CENTRAL = "central: {enabled: true}\n"
PRIVATE = "privacy: {enabled: true}\n"
TRAINING = Steps(sample_rate=0.05, noise_multiplier=0.5, count=200)
CLIENTS = Steps(sample_rate=1.0, noise_multiplier=1.0, count=10)


@pytest.mark.parametrize("document", [SERVER, SCENARIO], ids=["server", "scenario"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PRIVATE + "training: {epochs: 1}", "training.epochs: the length of an epoch is how much data a client has"),
        (
            "privacy: {enabled: true, noise_multiplier: 0.5}",
            f"privacy.noise_multiplier: 0.5 comes to ε = {epsilon([TRAINING], 1e-5):.3g} in 10 rounds of 20 steps, "
            "privacy.target_epsilon is 8",
        ),
        (
            "privacy: {enabled: true, target_epsilon: 0.000001}",
            "privacy.target_epsilon: no noise keeps 240 more steps within ε = 1e-06 at δ = 1e-05",
        ),
        (CENTRAL + "aggregation: {robust: median}", "central.enabled: median weighs an update by what the others sent"),
        (CENTRAL + "aggregation: {robust: clip}", "central.enabled: clip weighs an update by what the others sent"),
        (CENTRAL + "aggregation: {method: stacking}", "central.enabled: stacking factors every client's matrices"),
        (CENTRAL + "aggregation: {method: residual}", "central.enabled: residual passes on products"),
        (CENTRAL + "aggregation: {method: svd}", "central.enabled: svd factors the sum of products"),
        (CENTRAL + "aggregation: {method: personal}", "central.enabled: personal leaves every client a B of its own"),
        (
            CENTRAL + "federation: {sample: 4, over_select: 1.5}",
            "federation.over_select: where the first to answer count",
        ),
        (
            "central: {enabled: true, client_rate: 0.5}\nfederation: {sample: 4}",
            "federation.sample: cannot be used together with central.client_rate 0.5",
        ),
        (
            "central: {enabled: true, client_rate: 0.5}\nfederation: {quorum: 2}",
            "federation.quorum: cannot be used together with central.client_rate 0.5",
        ),
        (
            "central: {enabled: true, noise_multiplier: 1}",
            f"central.noise_multiplier: 1 comes to ε = {epsilon([CLIENTS], 1e-5):.3g} in 10 rounds, "
            "central.target_epsilon is 8",
        ),
    ],
)
def test_what_cannot_be_private_is_refused_with_the_reason(
    document: Document[Any], tmp_path: Path, text: str, fault: str
) -> None:
    faults = faults_of(document, tmp_path, text)
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize("method", ["mean", "frozen-a", "alternating"])
@pytest.mark.parametrize("optimizer", ["fedavg", "nesterov", "fedyogi"])
def test_what_can_be_private_is_not_refused(tmp_path: Path, method: str, optimizer: str) -> None:
    text = f"{PRIVATE}{CENTRAL}aggregation: {{method: {method}, optimizer: {optimizer}}}"
    assert faults_of(SERVER, tmp_path, text) == ()


@pytest.mark.parametrize("method", ["stacking", "residual", "svd", "personal"])
def test_private_training_goes_with_every_method_and_rule(tmp_path: Path, method: str) -> None:
    assert faults_of(SERVER, tmp_path, f"{PRIVATE}aggregation: {{method: {method}, robust: clip}}") == ()


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (
            PRIVATE + "aggregation: {weighting: examples}",
            "aggregation.weighting has no effect with privacy.enabled: every client counts alike",
        ),
        (
            CENTRAL + "aggregation: {max_weight: 10}",
            "aggregation.max_weight has no effect with central.enabled: every client counts alike",
        ),
        (
            PRIVATE + "federation: {evaluate_every: 2}",
            "federation.evaluate_every has no effect with privacy.enabled: held-out figures stay with the clients",
        ),
        (
            "central: {enabled: true, target_quantile: 0.4}",
            "central.target_quantile has no effect without central.adaptive_clip: true",
        ),
    ],
)
def test_a_setting_without_effect_is_told(tmp_path: Path, text: str, notice: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert resolve_server_config(tmp_path / "c.yaml", {}, {}).notices == (notice,)
