"""A simulated federation's configuration: the server's sections with the server's rules, and who the clients are."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from config_documents import faults_of

from neuralforge_server.config import FederationConfig
from neuralforge_simulations.scenario_config import SCENARIO, ScenarioConfig, resolve_scenario_config

TEAM = Path(__file__).parents[2] / "configs" / "simulations" / "team.yaml"


def test_our_own_scenario_loads_and_its_packages_are_installed() -> None:
    resolved = resolve_scenario_config(TEAM, {}, {})
    written = yaml.safe_load(TEAM.read_text())
    keys = {f"{section}.{key}" for section, entries in written.items() for key in entries}
    assert {key for key, origin in resolved.origins.items() if origin.kind == "file"} == keys
    assert resolved.notices == ()
    packages = resolved.config.clients.packages
    assert len(packages) == resolved.config.federation.min_clients
    assert all(importlib.util.find_spec(name) for name in packages)


def test_the_servers_sections_are_taken_as_they_are() -> None:
    shared = FederationConfig.model_fields.keys()
    assert [*shared] == [
        *("federation", "adapter", "training", "aggregation", "privacy", "central", "secure_aggregation"),
        *("admission", "wire"),
    ]
    assert all(getattr(ScenarioConfig(), name) == getattr(FederationConfig(), name) for name in shared)
    assert {*SCENARIO.sections} - shared == {"clients", "adversaries", "run"}


def test_the_environment_has_a_prefix_of_its_own() -> None:
    environ = {"NF_SIM_RUN_SEED": "3", "NF_SERVER_FEDERATION_ROUNDS": "4", "NF_SIM_CLIENTS_RANKS": "2, 4,8"}
    resolved = resolve_scenario_config(None, {}, environ)
    given = {key for key, origin in resolved.origins.items() if origin.kind != "default"}
    assert given == {"run.seed", "clients.ranks"}
    assert resolved.config.clients.ranks == (2, 4, 8)


def test_the_servers_rules_hold_here_too(tmp_path: Path) -> None:
    content = "training:\n  steps: 5\n  epochs: 1\naggregation:\n  robust: median\n  method: svd\n"
    assert [fault.partition(": ")[0] for fault in faults_of(SCENARIO, tmp_path, content)] == ["c.yaml:3", "c.yaml:5"]


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("clients.count", "0", "a whole number from 1 to 100,000"),
        ("clients.partition", "random", "repository, author, language, dirichlet or size"),
        ("clients.dirichlet_alpha", "0", "a number above 0"),
        ("clients.packages", "[rich, ../evil]", "a list of import packages such as rich"),
        ("clients.dropout", "1", "a number from 0 to below 1"),
        ("clients.slow_fraction", "1.1", "a number from 0 to 1"),
        ("clients.ranks", "[8, 0]", "a list of whole numbers from 1 to 256"),
        ("clients.ranks", "[8, true]", "a list of whole numbers from 1 to 256"),
        ("adversaries.kind", "liar", "none, sign-flip, scale, nan, wrong-shape, backdoor or noise"),
        ("adversaries.count", "-1", "a whole number ≥ 0"),
        ("run.backend", "dask", "local or ray"),
    ],
)
def test_a_value_out_of_bounds_is_told_what_was_wanted(tmp_path: Path, key: str, value: str, wanted: str) -> None:
    section, _, name = key.partition(".")
    (fault,) = faults_of(SCENARIO, tmp_path, f"{section}:\n  {name}: {value}\n")
    assert fault.startswith(f"c.yaml:2: {key}: wanted {wanted}, got ")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "clients:\n  partition: dirichlet\n",
            "c.yaml:2: clients.partition: dirichlet needs clients.count: the data do not say how many",
        ),
        (
            "clients:\n  partition: author\n  packages: [rich]\n",
            "c.yaml:3: clients.packages: cannot be split by author: installed packages have no history",
        ),
        (
            "clients:\n  count: 3\nfederation:\n  min_clients: 4\n",
            "c.yaml:4: federation.min_clients: 4 clients never come: there are 3 (clients.count)",
        ),
        (
            "clients:\n  count: 3\nfederation:\n  sample: 4\n",
            "c.yaml:4: federation.sample: 4 clients never come: there are 3 (clients.count)",
        ),
        (
            "clients:\n  count: 3\nadversaries:\n  kind: nan\n  count: 3\n",
            "c.yaml:5: adversaries.count: leaves no honest client among 3 (clients.count)",
        ),
        (
            "clients:\n  ranks: [4, 16]\n",
            "c.yaml:2: clients.ranks: 16 is above the server's 8 (adapter.rank)",
        ),
    ],
)
def test_keys_that_cannot_go_together_are_a_fault_with_its_reason(tmp_path: Path, content: str, fault: str) -> None:
    assert faults_of(SCENARIO, tmp_path, content) == (fault,)


@pytest.mark.parametrize(
    "content",
    [
        "clients:\n  partition: dirichlet\n  count: 4\n",
        "clients:\n  partition: author\n  sources: [a]\n",
        "clients:\n  count: 3\nfederation:\n  min_clients: 3\n  sample: 3\n",
        "clients:\n  count: 3\nadversaries:\n  kind: nan\n  count: 2\n",
        "clients:\n  ranks: [2, 8]\n",
    ],
)
def test_the_last_values_that_still_go_together_are_none(tmp_path: Path, content: str) -> None:
    assert faults_of(SCENARIO, tmp_path, content) == ()


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        (
            "clients:\n  dirichlet_alpha: 0.1\n",
            "clients.dirichlet_alpha has no effect without clients.partition: dirichlet",
        ),
        ("clients:\n  slow_seconds: 5\n", "clients.slow_seconds has no effect without clients.slow_fraction"),
        ("adversaries:\n  kind: nan\n", "nobody does harm: adversaries.count is 0"),
        ("adversaries:\n  count: 1\n", "nobody does harm: adversaries.kind is none"),
        ("aggregation:\n  trim: 0.1\n", "aggregation.trim has no effect without aggregation.robust: trimmed-mean"),
    ],
)
def test_a_setting_without_its_effect_is_told_in_one_line(tmp_path: Path, content: str, notice: str) -> None:
    (tmp_path / "n.yaml").write_text(content)
    assert resolve_scenario_config(tmp_path / "n.yaml", {}, {}).notices == (notice,)
