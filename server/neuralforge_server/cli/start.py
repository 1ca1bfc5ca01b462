"""`start`: runs the federation until its rounds are done."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

NAME = "start"
SUMMARY = "Run a federation: let clients in, ask for rounds, write the adapter. Goes on where it stopped."
EXAMPLES = """\
  nf-server start
  nf-server start --config configs/server.yaml
  NF_SERVER_FEDERATION_ROUNDS=50 nf-server start --config configs/server.yaml"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file (nf-server/server.yaml)")
    parser.add_argument("--rounds", metavar="N", help="federation.rounds: how many rounds in all")
    parser.add_argument("--directory", metavar="DIR", help="storage.directory: the state folder (nf-server)")
    parser.add_argument("--debug", action="store_true", help="a traceback before the one line that says what failed")


def run(args: argparse.Namespace) -> int:
    """Resolve the configuration, open the state folder, run."""
    import datetime

    from neuralforge_common.stop import StopRequest
    from neuralforge_server.cli.progress import FederationProgress
    from neuralforge_server.config_rules import resolve_server_config
    from neuralforge_server.state_folder import CONFIG, open_state_folder

    overrides = {"federation.rounds": args.rounds, "storage.directory": args.directory}
    given = {key: value for key, value in overrides.items() if value is not None}
    beside = Path(args.directory or "nf-server") / CONFIG
    file = args.config or (beside if beside.is_file() else None)
    resolved = resolve_server_config(file, given, os.environ)
    config = resolved.config
    state = open_state_folder(config.storage.directory, now=datetime.datetime.now(datetime.UTC))
    progress = FederationProgress()
    for notice in (*resolved.notices, *state.notices):
        progress.say(notice)
    progress.say(f"federation {config.federation.name} at {state.address(config.listen.port)}")
    # Flower takes two seconds to import: not before what can be refused without it.
    from neuralforge_server.clients import Stopped
    from neuralforge_server.coordinator import run_federation

    with StopRequest().listening() as stop:
        try:
            adapter = run_federation(config, state, observers=(progress,), stop=stop)
        except Stopped:
            progress.say("stopped; what is committed is kept, and the next nf-server start goes on from there")
            return 128 + (stop.signal or 15)
    progress.say(f"the adapter: {adapter}" if adapter else "every client keeps an adapter of its own")
    return 0
