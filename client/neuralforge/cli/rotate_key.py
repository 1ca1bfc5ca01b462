"""`rotate-key`: this machine goes on in a federation with another key."""

from __future__ import annotations

import argparse

NAME = "rotate-key"
SUMMARY = "Replace this machine's key in a federation; the old one signs for it and is refused from then on."
EXAMPLES = """\
  neuralforge rotate-key
  neuralforge rotate-key --server nf://build-box:8470"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--server", metavar="ADDRESS", help="nf://host:port (where just one was joined, that one)")


def run(args: argparse.Namespace) -> int:
    """Change keys."""
    from neuralforge.federation.home import client_home, open_federation
    from neuralforge_common.address import FederationAddress

    address = FederationAddress.parse(args.server) if args.server is not None else None
    joined = open_federation(address, home=client_home())
    from neuralforge.federation.rotate import rotate_key

    joined = rotate_key(joined)
    print(f"{joined.record.name} has a new key in {joined.record.federation}; the old one is refused from now on")
    return 0
