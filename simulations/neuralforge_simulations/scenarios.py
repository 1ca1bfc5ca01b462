"""A scenario from its configuration to its report."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from neuralforge_common.config.resolve import flatten
from neuralforge_common.errors import NeuralForgeError
from neuralforge_simulations.event_lines import Observer
from neuralforge_simulations.population import populate
from neuralforge_simulations.report import Report
from neuralforge_simulations.scenario_config import ScenarioConfig


def run_scenario(
    config: ScenarioConfig,
    *,
    observers: tuple[Observer, ...] = (),
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Run a scenario; the report lies in `run.directory`, complete to the point where the run ended, however it did.

    Raises:
        NeuralForgeError: it could not begin or go on; `Stopped` where it was asked to stop.
    """
    from neuralforge_server.clients import Stopped

    population = populate(config)
    plots = config.run.plots and importlib.util.find_spec("matplotlib") is not None
    notices = population.notices
    if config.run.plots and not plots:
        notices += ("no plots: matplotlib is not installed (pip install 'neuralforge[simulation]')",)
    for notice in notices:
        say(notice)
    report = Report(
        config.run.directory,
        title=config.federation.name,
        settings=flatten(config),
        clients=population.facts(config),
    )
    for notice in notices:
        report.notice(notice)
    everyone: tuple[Observer, ...] = (report, *observers)
    outcome = "ended by a fault of the program"
    try:
        if config.run.backend == "ray":
            from neuralforge_simulations.ray_engine import run_on_ray

            run_on_ray(config, population, observers=everyone, stop=stop)
        else:
            from neuralforge_simulations.engine import run_locally

            run_locally(config, population, observers=everyone, stop=stop)
        outcome = f"all {config.federation.rounds} rounds are done"
    except Stopped:
        outcome = f"stopped after {len(report.committed)} of {config.federation.rounds} rounds"
        raise
    except KeyboardInterrupt:
        outcome = f"interrupted after {len(report.committed)} of {config.federation.rounds} rounds"
        raise
    except NeuralForgeError as fault:
        outcome = f"ended after {len(report.committed)} of {config.federation.rounds} rounds: {fault.message}"
        raise
    finally:
        report.finish(outcome, plots=plots)
    return report
