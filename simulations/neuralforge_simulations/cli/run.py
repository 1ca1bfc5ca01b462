"""`run`: from a scenario to a report."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "run"
SUMMARY = "Run a simulated federation: the same apps as a real one, virtual clients, a report at the end."
EXAMPLES = """\
  nf-sim run configs/simulations/team.yaml
  nf-sim run configs/simulations/team.yaml --output ./report --seed 7
  nf-sim run configs/simulations/team.yaml --set aggregation.robust=median --set adversaries.kind=sign-flip \\
    --set adversaries.count=1
  nf-sim run configs/simulations/team.yaml --backend ray"""

_OPTIONS = (
    ("--backend", "run.backend", "NAME", "local: this process (default); ray: Flower's engine, for more machines"),
    ("--output", "run.directory", "DIR", "where the report goes (simulation)"),
    ("--seed", "run.seed", "N", "of the partition, of who drops out and of who does harm (0)"),
    ("--rounds", "federation.rounds", "N", "how many rounds (10)"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; what is not given stays out, so that file and environment speak first."""
    parser.add_argument("scenario", type=Path, metavar="FILE", help="a YAML file, see configs/simulations/")
    for option, key, takes, text in _OPTIONS:
        parser.add_argument(option, dest=key, metavar=takes, default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the scenario, e.g. clients.dropout=0.2; may be given several times",
    )
    parser.add_argument("--debug", action="store_true", help="a traceback before the one line that says what failed")


def run(args: argparse.Namespace) -> int:
    """Resolve the scenario, run it, say where the report lies."""
    import os

    from neuralforge_common.errors import UsageError
    from neuralforge_common.stop import StopRequest
    from neuralforge_simulations.cli.progress import SimulationProgress
    from neuralforge_simulations.scenario_config import resolve_scenario_config

    overrides: dict[str, object] = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: wanted KEY=VALUE, such as --set clients.dropout=0.2")
        overrides[key] = value
    overrides |= {key: value for _, key, _, _ in _OPTIONS if (value := getattr(args, key, None)) is not None}
    resolved = resolve_scenario_config(args.scenario, overrides, os.environ)

    # Late: torch and Flower take seconds, and a wrong scenario is told at once.
    from neuralforge_server.clients import Stopped
    from neuralforge_simulations.scenarios import run_scenario

    with SimulationProgress() as progress, StopRequest().listening() as stop:
        for notice in resolved.notices:
            progress.say(notice)
        try:
            report = run_scenario(resolved.config, observers=(progress,), say=progress.say, stop=stop)
        except Stopped:
            progress.say(f"stopped; the report so far: {resolved.config.run.directory}")
            return 128 + (stop.signal or 2)
    before, after = report.mean_score(0), report.mean_score(report.last_scored)
    if before is not None and after is not None and report.last_scored:
        progress.say(f"held-out loss of all clients: {before:.3f} → {after:.3f} nats a token")
    progress.say(f"the report: {report.folder / 'summary.md'}")
    return 0
