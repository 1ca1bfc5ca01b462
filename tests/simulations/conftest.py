"""A scenario small enough to run within a test: three packages of the standard library, the smallest base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuralforge_simulations.report import Report
from neuralforge_simulations.scenario_config import ScenarioConfig, resolve_scenario_config

SCENARIO = """\
federation: {name: small, rounds: 2, min_clients: 3}
adapter: {base: nf-tiny, rank: 2, target_modules: [q_proj, v_proj]}
training: {steps: 2, batch_size: 2, max_length: 48, warmup_steps: 0, learning_rate: 0.01}
clients: {partition: repository, packages: [json, wsgiref, html], max_samples_per_client: 8, max_eval_samples: 3}
run: {plots: false}
"""

Simulate = Callable[..., Report]


@pytest.fixture(scope="session")
def scenario_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario, on the disk."""
    path = tmp_path_factory.mktemp("scenario") / "small.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="session")
def scenario(scenario_file: Path) -> Callable[..., ScenarioConfig]:
    """The scenario with some keys changed, `__` in the place of the dot."""

    def make(**changes: object) -> ScenarioConfig:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        return resolve_scenario_config(scenario_file, overrides, {}).config

    return make


@pytest.fixture
def simulate(scenario: Callable[..., ScenarioConfig], tmp_path: Path) -> Simulate:
    """Run the scenario in this process, into a folder of the test."""
    from neuralforge_simulations.scenarios import run_scenario

    def run(name: str = "report", observers: tuple[Callable[[object], None], ...] = (), **changes: object) -> Report:
        return run_scenario(scenario(run__directory=tmp_path / name, **changes), observers=observers)

    return run
