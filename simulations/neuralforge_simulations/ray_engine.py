"""A scenario on Flower's Ray engine, watched from here; for federations that outgrow a process or a machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from neuralforge_common.config.resolve import to_yaml
from neuralforge_common.errors import FederationError
from neuralforge_server.clients import Stopped
from neuralforge_server.events import Finished
from neuralforge_simulations.event_lines import EventTail, Failed, Observer, SimulationEvent
from neuralforge_simulations.flower_run import run_flower_app
from neuralforge_simulations.population import Population
from neuralforge_simulations.ray_apps import EVENTS
from neuralforge_simulations.scenario_config import ScenarioConfig

LOG = "flower.log"


def run_on_ray(
    config: ScenarioConfig,
    population: Population,
    *,
    observers: tuple[Observer, ...],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run the scenario with `flwr run`; events reach the observers as they happen, Flower's own words `flower.log`.

    Raises:
        FederationError: Ray is not installed, or the rounds ended before they were done.
        Stopped: it was asked to stop.
    """
    done: list[SimulationEvent] = []
    with tempfile.TemporaryDirectory(prefix="nf-sim-") as folder:
        home = Path(folder)
        scenario = home / "scenario.yaml"
        scenario.write_text(to_yaml(config), encoding="utf-8")
        tail = EventTail(home / EVENTS)

        def watch() -> None:
            for event in tail.news():
                if isinstance(event, Failed | Finished):
                    done.append(event)
                if not isinstance(event, Failed):
                    for observer in observers:
                        observer(event)

        run_flower_app(
            server="neuralforge_simulations.ray_apps:server",
            client="neuralforge_simulations.ray_apps:client",
            run_config={"scenario": str(scenario), "place": str(Path.cwd()), "home": folder},
            clients=len(population.clients),
            folder=home,
            log=config.run.directory / LOG,
            watch=watch,
            stop=stop,
        )
    failed = next((event for event in done if isinstance(event, Failed)), None)
    if failed is not None:
        raise FederationError(failed.message, hint=failed.hint)
    if not done and stop():
        raise Stopped
    if not done:
        raise FederationError(
            "Flower's Ray engine ended before the rounds were done",
            hint=f"it says why in {config.run.directory / LOG}",
        )
