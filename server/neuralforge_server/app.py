"""The same rounds as an ordinary Flower app, for a site that runs its own SuperLink and decides who may join it.

Run configuration: `config`, the path of a server.yaml on the machine where the ServerApp runs (its `listen` section is
Flower's business here), and `directory`, the state folder (0700, made where it is missing).
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from neuralforge_server.cli.progress import FederationProgress
from neuralforge_server.config_rules import resolve_server_config
from neuralforge_server.coordinator import ADAPTER, save_adapter, start_point
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.ledger import Ledger
from neuralforge_server.strategy import FederatedLoRA

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration describes."""
    file = str(context.run_config.get("config", ""))
    directory = str(context.run_config.get("directory", "")) or "nf-server"
    config = resolve_server_config(Path(file) if file else None, {"storage.directory": directory}, os.environ).config
    folder = config.storage.directory
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    terms, method = terms_of(config), method_of(config)
    with Ledger.open(folder) as ledger:
        strategy = FederatedLoRA(
            terms,
            method,
            ledger,
            start_from=start_point(config.federation.start_from, terms, method),
            observers=(FederationProgress(),),
        )
        strategy.start(grid)
        save_adapter(folder / ADAPTER, terms, strategy.spec, strategy.state)
