"""What secure aggregation cannot be used together with is said when the configuration is read, each with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_documents import faults_of

from neuralforge_server.config_rules import SERVER, resolve_server_config
from neuralforge_server.from_config import terms_of

PEERS = "secure_aggregation: {trust: peers}\nfederation: {min_clients: 5}\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("aggregation: {method: stacking}", "stacking passes every client's matrices on by themselves"),
        ("aggregation: {method: residual}", "residual needs the product of every client's matrices"),
        ("aggregation: {method: svd}", "svd needs the product of every client's matrices"),
        ("aggregation: {method: personal}", "personal has each client train from matrices of its own"),
        ("aggregation: {robust: clip}", "no update is seen by itself, and clip compares them"),
        ("aggregation: {robust: median}", "no update is seen by itself, and median compares them"),
        ("central: {enabled: true, noise_multiplier: 5}", "central clips each one: wanted privacy.enabled"),
        ("training: {epochs: 1}", "follows from how many steps are taken: wanted training.steps"),
        ("wire: {format: fp16}", "fp16 cannot carry them: wanted fp32"),
        ("wire: {format: int8}", "int8 cannot carry them: wanted fp32"),
    ],
)
def test_what_it_cannot_be_used_with_is_refused_with_the_reason(tmp_path: Path, more: str, words: str) -> None:
    faults = faults_of(SERVER, tmp_path, PEERS + more)
    assert any(words in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("federation", "words"),
    [
        ("{min_clients: 2}", "2 are too few to hide in a sum: wanted 3 or more"),
        ("{min_clients: 5, sample: 2}", "2 are too few to hide in a sum: wanted 3 or more"),
        ("{min_clients: 5, sample: 4, over_select: 1.5}", "cannot be closed early: wanted 1"),
    ],
)
def test_too_few_to_hide_and_rounds_that_are_closed_early_are_refused(
    tmp_path: Path, federation: str, words: str
) -> None:
    faults = faults_of(SERVER, tmp_path, f"secure_aggregation: {{trust: peers}}\nfederation: {federation}\n")
    assert any(words in fault for fault in faults), faults


@pytest.mark.parametrize("method", ["mean", "frozen-a", "alternating"])
def test_methods_that_add_up_are_taken_and_all_clients_count_alike(tmp_path: Path, method: str) -> None:
    (tmp_path / "server.yaml").write_text(PEERS + f"aggregation: {{method: {method}, weighting: examples}}\n")
    resolved = resolve_server_config(tmp_path / "server.yaml", {}, {})
    terms = terms_of(resolved.config)
    assert (terms.trust, terms.weighting, terms.threshold, terms.neighbours) == ("peers", "uniform", 0.5, None)
    assert any("experimental" in notice for notice in resolved.notices)
    assert any("every client counts alike" in notice for notice in resolved.notices)


def test_with_privacy_on_each_client_it_goes_together(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(PEERS + "privacy: {enabled: true, noise_multiplier: 30}\n")
    assert terms_of(resolve_server_config(tmp_path / "server.yaml", {}, {}).config).privacy is not None


@pytest.mark.parametrize("value", ["0.4", "1", "many"])
def test_a_threshold_of_half_or_less_is_refused(tmp_path: Path, value: str) -> None:
    faults = faults_of(SERVER, tmp_path, f"secure_aggregation: {{trust: peers, threshold: {value}}}\n")
    assert any("from 0.5 to below 1" in fault for fault in faults), faults


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("secure_aggregation: {threshold: 0.7}\n")
    (notice,) = resolve_server_config(tmp_path / "server.yaml", {}, {}).notices
    assert notice == "secure_aggregation.threshold has no effect without secure_aggregation.trust: peers"
