"""The same rounds as an ordinary Flower app, for a site that runs its own SuperLink and decides who may join it.

Everything is installed on every machine, so that nothing is fetched when it runs. Paths are absolute, as Flower's
programs work in folders of their own; `--insecure` is for one machine, elsewhere TLS and `--enable-supernode-auth`.

    flower-superlink --insecure --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink 127.0.0.1:8000 --node-config 'config="/home/ann/client.yaml"'
    flwr run configs/flower-app team --stream --run-config 'config="/srv/server.yaml" directory="/srv/nf-server"'

`team` is a connection in Flower's own configuration, $FLWR_HOME/config.toml:

    [superlink.team]
    address = "127.0.0.1:8000"
    insecure = true

Run configuration: `config`, the path of a server.yaml on the machine where the ServerApp runs (its `listen` section is
Flower's business here), and `directory`, the state folder (0700, made where it is missing). The next `flwr run` with
the same folder goes on after the last committed round.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from neuralforge_common.errors import ConfigError
from neuralforge_server.adapter_files import ADAPTER, save_adapter, start_point
from neuralforge_server.cli.progress import FederationProgress
from neuralforge_server.config_rules import resolve_server_config
from neuralforge_server.from_config import method_of, terms_of
from neuralforge_server.ledger import Ledger
from neuralforge_server.record_file import RECORDS, Records
from neuralforge_server.strategy import FederatedLoRA

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration describes."""
    file = str(context.run_config.get("config", ""))
    directory = str(context.run_config.get("directory", "")) or "nf-server"
    config = resolve_server_config(Path(file) if file else None, {"storage.directory": directory}, os.environ).config
    folder = config.storage.directory
    if config.secure_aggregation.trust == "peers":
        why = "stock Flower starts a client anew for every message, and keys that live in memory alone are lost with it"
        raise ConfigError([f"secure_aggregation.trust: peers: {why}"], hint="nf-server start runs such a federation")
    terms, method = terms_of(config), method_of(config)
    with Ledger.open(folder) as ledger, contextlib.closing(Records(folder / RECORDS)) as records:
        strategy = FederatedLoRA(
            terms,
            method,
            ledger,
            start_from=start_point(config.federation.start_from, terms, method),
            observers=(FederationProgress(), records),
        )
        strategy.start(grid)
        save_adapter(folder / ADAPTER, terms, strategy.spec, strategy.state)
