"""`adapters login`: a registry becomes known to this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "login"
SUMMARY = "Make a registry known to this machine; its address says by which fingerprint it is recognised."
EXAMPLES = """\
  neuralforge adapters login 'nf://build-box:8474#sha256:9f86d0…'
  neuralforge adapters login 'nf://build-box:8474#sha256:9f86d0…' --token-file ./token
  NEURALFORGE_REGISTRY_TOKEN=nfr_… neuralforge adapters search spring"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("address", metavar="ADDRESS", help="nf://host:port#sha256:…, in quotes")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="keep the token in this private file (0600); a machine that has joined the federation needs none",
    )
    parser.add_argument(
        "--anew", action="store_true", help="forget what was known of it, such as the indexes that were seen"
    )


def run(args: argparse.Namespace) -> int:
    """Call it, remember it, say whom it takes us for."""
    from neuralforge.federation.home import client_home
    from neuralforge.registry.connection import login, read_token
    from neuralforge.registry.home import parse_address
    from neuralforge_common.protocol import registry_pb2 as messages

    token = None if args.token_file is None else read_token(args.token_file)
    connection = login(parse_address(args.address), home=client_home(), token=token, anew=args.anew)
    known = connection.known
    print(f"registry     {known.registry}, nf://{known.address.endpoint}")
    print(f"index key    sha256:{known.index_key.fingerprint}")
    print(f"this is      {connection.caller or 'nobody in particular: what is public can be searched and pulled'}")
    for team, scope in sorted(connection.teams.items()):
        print(f"team         {team}, {messages.Scope.Name(scope).lower()}")
    return 0
