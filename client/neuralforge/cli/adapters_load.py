"""`adapters load`: another adapter in the server that is running, without loading its base again."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli.numbers import positive

NAME = "load"
SUMMARY = "Put another adapter into the running editor server; requests that follow use it."
EXAMPLES = """\
  neuralforge adapters load ./other.lora
  neuralforge adapters load ./other.lora --port 8013"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the .lora folder")
    parser.add_argument("--port", type=positive, help="the server's port, where several run")


def run(args: argparse.Namespace) -> int:
    """Find the server and hand it the path; it reads and checks the folder itself."""
    from neuralforge.federation.home import client_home
    from neuralforge.serving.running import find_server
    from neuralforge_common.folder import read_adapter_claims

    read_adapter_claims(args.adapter)
    server = find_server(home=client_home(), port=args.port)
    name = server.load(args.adapter.absolute())
    print(f"loaded {name} into the server at {server.host}:{server.port}")
    return 0
