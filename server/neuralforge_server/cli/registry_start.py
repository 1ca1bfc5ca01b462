"""`registry start`: lets people publish, search and pull, until it is stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from neuralforge_server.cli.registry_folder import BLOBS_VARIABLE, add_place, database_url, size

NAME = "start"
SUMMARY = "Run the registry until it is stopped; where there is no state folder yet, make one as nf-server init does."
EXAMPLES = """\
  nf-server registry start
  nf-server registry start --directory /srv/nf-server --port 8474
  nf-server registry start --database postgresql://nf@db.internal/registry --blobs s3://adapters/registry"""

_SWEEP_SECONDS = 3600.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_place(parser)
    parser.add_argument("--blobs", metavar="URL", help=f"what fsspec knows, or {BLOBS_VARIABLE} (a folder inside it)")
    parser.add_argument("--listen", default="0.0.0.0", metavar="HOST", help="an address of this machine (all)")  # noqa: S104
    parser.add_argument("--port", type=_port, default=8474, help="for tokens and whoever comes (8474)")
    parser.add_argument("--member-port", type=_port, default=8475, help="for nodes of the federation (8475)")
    parser.add_argument("--team-quota", type=size, default=50 * 10**9, metavar="SIZE", help="bytes of a team (50GB)")
    parser.add_argument("--file-limit", type=size, default=10**9, metavar="SIZE", help="bytes of one file (1GB)")
    parser.add_argument("--debug", action="store_true", help="a traceback before the one line that says what failed")


def run(args: argparse.Namespace) -> int:
    """Open everything, answer until a signal comes."""
    import datetime
    import logging
    import time

    from neuralforge_common.stop import StopRequest
    from neuralforge_server.cli.folder import opened
    from neuralforge_server.cli.init import make_federation
    from neuralforge_server.config_rules import resolve_server_config
    from neuralforge_server.registry.place import open_registry
    from neuralforge_server.registry.published import Quota
    from neuralforge_server.registry.serve import serve_registry
    from neuralforge_server.state_folder import CONFIG

    if not args.directory.exists():
        make_federation(args.directory, hosts=(), name="team", port=8470)
        _say(f"made the state folder {args.directory}; back up {args.directory}/ca.key")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # tracebacks of what callers did
    config: Path = args.directory / CONFIG
    name = resolve_server_config(config if config.is_file() else None, {}, os.environ).config.federation.name
    blobs = args.blobs or os.environ.get(BLOBS_VARIABLE) or None
    quota = Quota(blob_bytes=args.file_limit, team_bytes=args.team_quota)
    with (
        StopRequest().listening() as stop,
        opened(args.directory) as (state, identities),
        open_registry(args.directory, name=name, database=database_url(args), blobs=blobs, quota=quota) as registry,
    ):
        for notice in state.notices:
            _say(notice)
        running = serve_registry(
            registry, state, identities, host=args.listen, port=args.port, member_port=args.member_port
        )
        if not registry.access.teams():
            _say("no team can publish yet: nf-server registry team add TEAM --member NAME --signer KEY.pub")
        _say(f"index key sha256:{registry.index.key.fingerprint}")
        _say(f"registry {name} at {state.address(running.port)}")
        swept = time.monotonic()
        while not stop():
            time.sleep(0.2)
            if time.monotonic() - swept > _SWEEP_SECONDS:
                registry.uploads.sweep()
                swept = time.monotonic()
        running.stop()
    _say(f"stopped, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%SZ}; what is published is kept")
    return 128 + (stop.signal or 15)


def _say(line: str) -> None:
    print(line, flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 0 (a free one) to 65,535, got {text!r}")
    return int(text)
